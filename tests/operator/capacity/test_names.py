import pytest

from quire_operator.capacity import CapacityError, footprint_of_name

GB = 10**9


@pytest.mark.parametrize(
    ("name", "plain_gb", "quantized_gb"), [("7B", 14, 4), ("70B", 140, 39), ("405B", 810, 217)]
)
def test_a_size_alone_gives_the_weights(name: str, plain_gb: float, quantized_gb: float) -> None:
    plain = footprint_of_name(name)
    quantized = footprint_of_name(name, quantization="awq")

    assert plain is not None
    assert quantized is not None
    assert plain.weight_bytes / GB == pytest.approx(plain_gb, rel=0.01)
    assert quantized.weight_bytes / GB == pytest.approx(quantized_gb, rel=0.02)
    assert plain.is_estimate


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8),
        ("Qwen/Qwen3-30B-A3B-FP8", 30),
        ("Qwen2.5-0.5B", 0.5),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 0.135),
        ("mistralai/Mixtral-8x7B-v0.1", 45.92),
        ("gemma-3-27b-it", 27),
        ("hf://meta-llama/Llama-3.3-70B", 70),
    ],
)
def test_the_size_is_found_in_names_of_models(name: str, billions: float) -> None:
    footprint = footprint_of_name(name)

    assert footprint is not None
    assert footprint.num_parameters == pytest.approx(billions * 1e9, rel=0.01)


@pytest.mark.parametrize(
    "name", ["gpt2", "Phi-3-mini", "Llama-4-Scout-17B-16E", "model-8bit", "0B", "", "v1.8Beta"]
)
def test_a_name_without_a_size_gives_nothing(name: str) -> None:
    assert footprint_of_name(name) is None


@pytest.mark.parametrize(
    ("name", "weight_format"),
    [
        ("Llama-3.1-8B", "bfloat16"),
        ("Llama-3.1-8B-AWQ", "awq 4-bit"),
        ("Qwen2.5-7B-Instruct-GPTQ-Int4", "awq 4-bit"),
        ("Qwen2.5-7B-Instruct-GPTQ-Int8", "int8"),
        ("Qwen3-8B-FP8", "fp8"),
        ("Llama-3.1-8B-Q4_K_M", "awq 4-bit"),
        ("Llama-3.1-8B-NVFP4", "nvfp4"),
        ("Llama-3.1-8B-quantized.w8a8", "int8"),
    ],
)
def test_quantization_is_read_from_names(name: str, weight_format: str) -> None:
    footprint = footprint_of_name(name)

    assert footprint is not None
    assert footprint.weight_format == weight_format


def test_an_unknown_quantization_is_refused() -> None:
    with pytest.raises(CapacityError, match="quantization must be one of"):
        footprint_of_name("8B", quantization="q9")
