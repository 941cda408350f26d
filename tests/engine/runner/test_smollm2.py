"""The demo model, token by token against transformers."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

from quire_engine.config import ModelConfig
from quire_engine.model.families import read_spec
from quire_engine.model.gguf_weights import read_gguf
from quire_engine.model.source import ModelSource, resolve

PROMPTS = [
    "What is the capital of France?",
    "def fibonacci(n):",
    "Once upon a time, in a land far away,",
    "The three laws of thermodynamics are",
    "1, 1, 2, 3, 5, 8,",
    "Translate to French: good morning",
    "SELECT * FROM users WHERE",
    "The quick brown fox",
    "In 1969, humans first",
    "Q: What is 17 * 23?\nA:",
    "Dear Sir or Madam,",
    "Roses are red,",
    "import numpy as np\n",
    "The mitochondria is",
    "To be or not to be",
    "Der schnelle braune Fuchs",
    "A recipe for pancakes: ",
    "Breaking news: " * 20,
    "Newton's second law says",
    "x",
]
NUM_TOKENS = 64


@pytest.fixture(scope="module")
def source() -> ModelSource:
    return resolve(ModelConfig())


@pytest.fixture(scope="module")
def reference(source: ModelSource) -> Any:
    """transformers' model with the same dequantized weights."""
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**source.config))
    weights = read_gguf(Path(source.weight_files[0]), read_spec(source.config))
    model.load_state_dict(dict(weights), strict=False)  # the head is tied
    return model.float().eval()


def test_greedy_tokens_equal_those_of_transformers(
    build: Any, source: ModelSource, reference: Any
) -> None:
    tokenizer = tokenizers.Tokenizer.from_str(source.load_tokenizer() or "")
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    engine = build(model="", load_format="auto", num_gpu_blocks_override=400)

    found = engine.generate(prompts, NUM_TOKENS, chunk=48)

    for prompt, tokens in zip(prompts, found, strict=True):
        # Whatever greedy decoding would have chosen at each step, all steps at once.
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + tokens])).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == tokens
