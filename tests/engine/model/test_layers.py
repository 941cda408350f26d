import pytest
import torch

from quire_engine.model.layers import MIN_ROWS, PackedLinear, PlainLinear, has_packed_linear

CPU = torch.device("cpu")
needs_bfloat16 = pytest.mark.skipif(
    not has_packed_linear(CPU, torch.bfloat16), reason="oneDNN has no bfloat16 here"
)


def weights(num_outputs: int, num_inputs: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_outputs, num_inputs, generator=generator).to(dtype)


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_packed_linear_computes_what_a_plain_one_does(with_bias: bool) -> None:
    weight, x, other = (
        weights(24, 40, torch.float32),
        weights(5, 40, torch.float32),
        weights(5, 24, torch.float32),
    )
    bias = weights(1, 24, torch.float32)[0] if with_bias else None
    packed, plain = PackedLinear(weight, bias), PlainLinear(weight, bias)

    with torch.inference_mode():
        torch.testing.assert_close(packed(x), plain(x))
        torch.testing.assert_close(packed.silu(x), plain.silu(x))
        torch.testing.assert_close(packed.times(x, other), plain.times(x, other))
        torch.testing.assert_close(packed.plus(x, other), plain.plus(x, other))


@needs_bfloat16
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(960, 576), (576, 1536), (1536, 576)])
def test_a_row_has_the_same_bits_whatever_the_number_of_rows(
    num_outputs: int, num_inputs: int
) -> None:
    linear = PackedLinear(weights(num_outputs, num_inputs, torch.bfloat16))
    x = weights(200, num_inputs, torch.bfloat16)
    other = weights(200, num_outputs, torch.bfloat16)

    with torch.inference_mode():
        whole = [linear(x), linear.silu(x), linear.times(x, other), linear.plus(x, other)]
        for num_rows in (MIN_ROWS, 3, 7, 16, 33, 100):
            rows = slice(5, 5 + num_rows)
            part = [
                linear(x[rows]),
                linear.silu(x[rows]),
                linear.times(x[rows], other[rows]),
                linear.plus(x[rows], other[rows]),
            ]
            for one, all_rows in zip(part, whole, strict=True):
                assert torch.equal(one, all_rows[rows])
