import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import given, settings, strategies as st

from quire_engine.config import ModelConfig
from quire_engine.kernels.cpu.decoder import NativeDecoder, unsupported
from quire_engine.kernels.cpu.library import Library, load_library
from quire_engine.model.decoder import Decoder
from quire_engine.model.families import read_spec
from quire_engine.model.gguf_weights import read_gguf
from quire_engine.model.source import resolve
from quire_engine.model.spec import ModelSpec
from quire_engine.model.weight_places import assemble
from quire_engine.model.weights import parameters
from quire_engine.runner.input_batch import InputBatch
from quire_engine.runner.memory import KvCache
from quire_engine.runner.native_model import NativeModel
from quire_engine.runner.plan import AdmittedSequence, StepPlan
from quire_engine.runner.sampling.sampler import Sampler
from quire_engine.runner.torch_model import StepModel, TorchModel
from quire_engine.sampling_params import SamplingParams

pytestmark = pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("avx512_bf16"), reason="the kernels need AVX512-BF16"
)

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "head_dim 64, 3 heads share": {
        "head_dim": 64,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "head_dim 80, 7 heads share": {
        "head_dim": 80,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
    },
    "head_dim 96, none shares": {
        "head_dim": 96,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
    },
    "head_dim 128, 8 heads share": {
        "head_dim": 128,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
    },
    "odd sizes": {"vocab_size": 97, "hidden_size": 70, "intermediate_size": 58},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"]},
    "biases": {"attention_bias": True, "mlp_bias": True, "intermediate_size": 58},
    "window": {"architectures": ["MistralForCausalLM"], "sliding_window": 40},
    "partial rope": {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 10000.0}},
    "tied head": {"tie_word_embeddings": True},
}
NUM_BLOCKS = 300
TEXTS = (
    "The capital of France is Paris. It lies on the Seine, in the north of the country.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Once upon a time, in a land far away, there lived a king who had three daughters.",
    "Newton's second law says that force is the product of mass and acceleration.",
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer",
    "SELECT name, COUNT(*) FROM users WHERE age > 18 GROUP BY name ORDER BY name;",
)


@pytest.fixture(scope="module")
def library() -> Iterator[Library]:
    found = load_library(2)
    if found is None:
        pytest.skip("there is no C compiler")
    yield found
    found.close()


def make_spec(**overrides: Any) -> ModelSpec:
    return read_spec(CONFIG | overrides)


def make_weights(spec: ModelSpec, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return random weights that bfloat16 holds exactly."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for parameter in parameters(spec):
        weight = torch.randn(parameter.shape, generator=generator)
        if len(parameter.shape) == 2 and parameter.name != "embedding.weight":
            weight *= 2 * parameter.shape[1] ** -0.5
        elif "norm" in parameter.name:
            weight = 1 + weight / 8
        weights[parameter.name] = weight.bfloat16().to(dtype)
    return weights


def make_torch(spec: ModelSpec, dtype: torch.dtype, block_size: int) -> TorchModel:
    cache = KvCache(spec, num_blocks=NUM_BLOCKS, block_size=block_size, dtype=dtype)
    return TorchModel(Decoder(spec, make_weights(spec, dtype), max_len=2048), cache)


def make_native(spec: ModelSpec, library: Library, block_size: int = 16) -> NativeModel:
    cache = KvCache(spec, num_blocks=NUM_BLOCKS, block_size=block_size, dtype=torch.bfloat16)
    for layer in cache.by_block:  # what earlier sequences left must not matter
        layer.fill_(float("nan"))
    weights = make_weights(spec, torch.bfloat16)
    return NativeModel(NativeDecoder(spec, weights, cache, library, max_len=2048))


def logits_of(
    model: StepModel,
    spec: ModelSpec,
    prompts: Sequence[Sequence[int]],
    chunks: Sequence[int],
    block_size: int = 16,
) -> list[torch.Tensor]:
    """Return the logits of all tokens of each prompt; step k computes chunks[k % len] of each."""
    batch = InputBatch(max_num_seqs=len(prompts), max_model_len=2048, block_size=block_size)
    sampler = Sampler(vocab_size=spec.vocab_size)
    blocks = random.Random(0).sample(range(NUM_BLOCKS), NUM_BLOCKS)
    admitted = [
        AdmittedSequence(
            seq_id=index,
            token_ids=list(prompt),
            num_prompt_tokens=len(prompt),
            block_ids=[blocks.pop() for _ in range(-(-len(prompt) // block_size))],
            num_computed_tokens=0,
            params=SamplingParams(),
        )
        for index, prompt in enumerate(prompts)
    ]
    batch.apply(
        StepPlan(admitted=admitted), {item.seq_id: sampler.admit(item) for item in admitted}
    )
    found: list[list[torch.Tensor]] = [[] for _ in prompts]
    left = [len(prompt) for prompt in prompts]
    step = 0
    while any(left):
        size = chunks[step % len(chunks)]
        counts = {index: min(size, count) for index, count in enumerate(left) if count}
        laid_out = batch.chunks(counts)
        with torch.inference_mode():
            model.forward(laid_out, batch)
            for chunk in laid_out:
                lines = range(chunk.first_line, chunk.first_line + chunk.num_tokens)
                found[chunk.row.seq_id].append(model.logits(lines).float().clone())
                batch.advance(chunk)
                left[chunk.row.seq_id] -= chunk.num_tokens
        step += 1
    return [torch.cat(parts) for parts in found]


def make_prompts(spec: ModelSpec, lengths: Sequence[int]) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(spec.vocab_size) for _ in range(length)] for length in lengths]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_closer_to_float32_than_those_of_torch(
    case: str, block_size: int, library: Library
) -> None:
    spec = make_spec(**CASES[case])
    assert unsupported(spec, torch.bfloat16, block_size) is None
    prompts = make_prompts(spec, (1, 2, 17, 70, 150, 300))
    exact, plain, native = (
        torch.cat(logits_of(model, spec, prompts, [13, 64], block_size))
        for model in (
            make_torch(spec, torch.float32, block_size),
            make_torch(spec, torch.bfloat16, block_size),
            make_native(spec, library, block_size),
        )
    )

    assert relative_error(native, exact) < 0.02
    assert relative_error(native, exact) < relative_error(plain, exact)


@pytest.mark.parametrize("window", [None, 700])
def test_long_contexts_are_right(window: int | None, library: Library) -> None:
    spec = make_spec(architectures=["MistralForCausalLM"], sliding_window=window)
    prompts = make_prompts(spec, (2000,))
    exact = logits_of(make_torch(spec, torch.float32, 16), spec, prompts, [500])[0]
    native = logits_of(make_native(spec, library), spec, prompts, [1000])[0]

    assert relative_error(native[1500:], exact[1500:]) < 0.03


@pytest.fixture(scope="module", params=["llama", "window", "head_dim 80, 7 heads share"])
def watched(request: pytest.FixtureRequest, library: Library) -> tuple[ModelSpec, NativeModel]:
    spec = make_spec(**CASES[request.param])
    return spec, make_native(spec, library)


@settings(max_examples=15)
@given(
    length=st.integers(1, 250),
    others=st.lists(st.integers(1, 150), max_size=8),
    chunks=st.lists(st.integers(1, 250), min_size=1, max_size=4),
)
def test_bits_depend_on_nothing_but_the_tokens(
    watched: tuple[ModelSpec, NativeModel], length: int, others: list[int], chunks: list[int]
) -> None:
    spec, model = watched
    prompts = make_prompts(spec, [length, *others])
    alone = logits_of(model, spec, prompts[:1], [1000])[0]

    assert torch.equal(logits_of(model, spec, prompts, chunks)[0], alone)


def test_bits_do_not_depend_on_the_number_of_threads(library: Library) -> None:
    spec = make_spec()
    prompts = make_prompts(spec, (100, 7))
    other = load_library(5)
    assert other is not None
    found = logits_of(make_native(spec, other), spec, prompts, [50])
    other.close()

    expected = logits_of(make_native(spec, library), spec, prompts, [50])

    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("overrides", "block_size", "reason"),
    [
        ({"head_dim": 24}, 16, "head_dim=24"),
        ({"head_dim": 512}, 16, "head_dim=512"),
        ({"hidden_size": 63}, 16, "odd"),
        ({}, 8, "block_size=8"),
    ],
)
def test_what_the_kernels_cannot_run_is_named(
    overrides: dict[str, Any], block_size: int, reason: str
) -> None:
    assert reason in str(unsupported(make_spec(**overrides), torch.bfloat16, block_size))


def test_other_types_are_left_to_torch() -> None:
    assert unsupported(make_spec(), torch.float32, 16) == "dtype float32 is not bfloat16"
    spec = make_spec(num_attention_heads=130, num_key_value_heads=2)
    assert "65 heads" in str(unsupported(replace(spec), torch.bfloat16, 16))


def test_the_demo_model_says_what_it_says_in_torch(library: Library) -> None:
    source = resolve(ModelConfig())
    spec = read_spec(source.config)
    tokenizer = tokenizers.Tokenizer.from_str(source.load_tokenizer() or "")
    prompts = [tokenizer.encode(text).ids for text in TEXTS]

    def load(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return assemble(spec, read_gguf(Path(source.weight_files[0]), spec), dtype)

    def make_cache(dtype: torch.dtype) -> KvCache:
        return KvCache(spec, num_blocks=NUM_BLOCKS, block_size=16, dtype=dtype)

    def logits(model: StepModel) -> torch.Tensor:
        return torch.cat(logits_of(model, spec, prompts, [64]))

    with torch.inference_mode():
        exact, plain = (
            logits(TorchModel(Decoder(spec, load(dtype), max_len=2048), make_cache(dtype)))
            for dtype in (torch.float32, torch.bfloat16)
        )
    weights, cache = load(torch.bfloat16), make_cache(torch.bfloat16)
    native = logits(NativeModel(NativeDecoder(spec, weights, cache, library, max_len=2048)))

    assert relative_error(native, exact) < relative_error(plain, exact)
    assert (native.argmax(-1) == plain.argmax(-1)).float().mean() > 0.95
    assert (native.argmax(-1) == exact.argmax(-1)).float().mean() > 0.97
