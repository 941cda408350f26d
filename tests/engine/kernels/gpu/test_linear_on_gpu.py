import pytest
import torch
from torch.nn import functional

from quire_engine.kernels.gpu.linear import GpuLinear
from quire_engine.kernels.gpu.norm import Norm
from quire_engine.kernels.gpu.quantize import Fp8Weight, quantize_weight

pytestmark = pytest.mark.gpu

SHAPES = [(6144, 4096), (4096, 14336), (28672, 4096), (4096, 1024), (1024, 3072), (960, 576)]


def make_weight(shape: tuple[int, int], kind: str) -> torch.Tensor | Fp8Weight:
    weight: torch.Tensor = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    weight *= shape[1] ** -0.5
    if kind == "plain":
        return weight
    if kind == "row":
        return quantize_weight(weight)
    scale = torch.rand(shape[0] // 128, shape[1] // 128, device="cuda") / 448
    return Fp8Weight((weight * 448).clamp(-448, 448).to(torch.float8_e4m3fn), scale)


def wide(weight: torch.Tensor | Fp8Weight) -> torch.Tensor:
    if isinstance(weight, torch.Tensor):
        return weight.float()
    if weight.per_block:
        scale = weight.scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
        return weight.numbers.float() * scale
    return weight.numbers.float() * weight.scale[:, None]


def check(ours: torch.Tensor, theirs: torch.Tensor, kind: str) -> None:
    error = (ours.float() - theirs).norm() / theirs.norm()
    assert error < (0.01 if kind == "plain" else 0.06)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["plain", "row", "block"])
@pytest.mark.parametrize("num_tokens", [1, 2, 8, 16, 17, 33, 64, 65, 300])
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_linears_of_real_shapes_are_right_and_can_be_captured(
    shape: tuple[int, int], kind: str, num_tokens: int, batch_invariant: bool
) -> None:
    if kind == "block" and (shape[0] % 128 or shape[1] % 128):
        pytest.skip("blocks are whole")
    torch.manual_seed(0)
    weight = make_weight(shape, kind)
    linear = GpuLinear(weight, batch_invariant=batch_invariant)
    x = torch.randn(num_tokens, shape[1], device="cuda", dtype=torch.bfloat16)
    norm = Norm(torch.rand(shape[1], device="cuda", dtype=torch.bfloat16), 1e-5)
    normed = functional.rms_norm(x.float(), (shape[1],), norm.weight_E.float(), norm.eps)
    y, plain = normed @ wide(weight).t(), x.float() @ wide(weight).t()
    gate, up = y.chunk(2, -1)
    out = torch.zeros(num_tokens, shape[0], device="cuda", dtype=torch.bfloat16)
    total, half = torch.ones_like(out), torch.zeros_like(gate, dtype=torch.bfloat16)

    def run() -> None:
        linear(x, out, norm=norm)
        total.fill_(1)
        linear.add_to(x, total)
        linear.gated(x, half, norm=norm)

    for _ in range(3):
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for results in (out, half):
        results.zero_()
    for _ in range(3):
        graph.replay()

    check(out, y, kind)
    check(total, plain + 1, kind)
    check(half, functional.silu(gate) * up, kind)


def test_a_chain_of_dependent_kernels_repeats_its_bits() -> None:
    torch.manual_seed(0)
    shapes = [(6144, 4096), (4096, 6144)]
    linears = [GpuLinear(make_weight(shape, "plain")) for shape in shapes]
    norm = Norm(torch.rand(4096, device="cuda", dtype=torch.bfloat16), 1e-5)
    for num_tokens in (1, 8, 64):
        start = torch.randn(num_tokens, 4096, device="cuda", dtype=torch.bfloat16)
        between = torch.empty(num_tokens, 6144, device="cuda", dtype=torch.bfloat16)
        seen = []
        for _ in range(20):
            x = start.clone()
            for _ in range(16):
                linears[0](x, between, norm=norm)
                linears[1].add_to(between, x)
            seen.append(x)
        assert all(torch.equal(x, seen[0]) for x in seen)
