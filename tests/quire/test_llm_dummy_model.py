import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quire import LLM, SamplingParams
from quire_engine.errors import ConfigError, InvalidRequestError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "eos_token_id": 2,
}


def make_llm(folder: Path, **options: Any) -> LLM:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return LLM(
        model=str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=128,
        max_num_seqs=16,
        kv_cache_memory_bytes=1 << 22,
        dtype="float32",
        **options,
    )


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with make_llm(tmp_path_factory.mktemp("dummy")) as llm:
        yield llm


def test_token_ids_are_completed_in_order_and_alike_every_time(llm: LLM) -> None:
    prompts = [{"prompt_token_ids": list(range(3, 3 + length))} for length in (1, 40, 7, 20)]
    params = [
        SamplingParams(temperature=0, max_tokens=limit, ignore_eos=True) for limit in (3, 9, 1, 20)
    ]

    first = llm.generate(prompts, params, use_tqdm=False)
    alone = [
        llm.generate(prompt, each, use_tqdm=False)[0]
        for prompt, each in zip(prompts, params, strict=True)
    ]

    assert [len(output.outputs[0].token_ids) for output in first] == [3, 9, 1, 20]
    assert [output.outputs[0].token_ids for output in first] == [
        output.outputs[0].token_ids for output in alone
    ]
    assert {output.outputs[0].text for output in first} == {""}


def test_completions_of_a_seeded_request_are_those_of_consecutive_seeds(llm: LLM) -> None:
    prompt = {"prompt_token_ids": [5, 6, 7]}

    [together] = llm.generate(prompt, SamplingParams(n=3, seed=40), use_tqdm=False)
    apart = llm.generate(
        [prompt] * 3, [SamplingParams(seed=40 + index) for index in range(3)], use_tqdm=False
    )

    assert [each.token_ids for each in together.outputs] == [
        output.outputs[0].token_ids for output in apart
    ]


def test_a_completion_fills_the_context_and_no_more(llm: LLM) -> None:
    params = SamplingParams(max_tokens=None, ignore_eos=True)

    [output] = llm.generate([[5] * 100], params, use_tqdm=False)

    assert len(output.outputs[0].token_ids) == 28
    assert output.outputs[0].finish_reason == "length"


def test_without_a_tokenizer_text_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="a text prompt needs a tokenizer"):
        llm.generate("text", use_tqdm=False)
    with pytest.raises(ConfigError, match="there is no tokenizer"):
        llm.get_tokenizer()
    with pytest.raises(InvalidRequestError, match="no chat template"):
        llm.chat([{"role": "user", "content": "x"}], use_tqdm=False)


def test_a_program_records_the_steps_that_it_wants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, prompt = tmp_path / "traces", {"prompt_token_ids": [5, 6, 7]}
    params = SamplingParams(max_tokens=4, ignore_eos=True)

    with make_llm(tmp_path, profile=str(folder), profile_steps=0, device="cpu") as llm:
        llm.generate(prompt, params, use_tqdm=False)
        llm.start_profile()
        llm.generate(prompt, params, use_tqdm=False)
        llm.stop_profile()
        llm.generate(prompt, params, use_tqdm=False)

    trace, table = folder / "quire-0.pt.trace.json.gz", folder / "quire-0.txt"
    assert sorted(folder.iterdir()) == [trace, table]
    assert table.read_text().startswith(f"4 steps of 6 tokens in {trace}\n")
    assert capsys.readouterr().err.endswith(table.read_text())


def test_recording_steps_without_a_folder_for_traces_names_the_option(llm: LLM) -> None:
    for method in (llm.start_profile, llm.stop_profile):
        with pytest.raises(ConfigError, match=r'set profile, as in LLM\(model, profile="traces"'):
            method()
