import pytest
import torch

from attention_cases import FP8, Case, make_case, relative_error
from quire_engine.kernels.gpu.decode_attention import decode_attention
from quire_engine.kernels.gpu.decode_attention_plan import DecodePlan

ERRORS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def make_plan(case: Case, window: int | None = None, batch_invariant: bool = False) -> DecodePlan:
    _, num_heads, head_dim = case.q_THD.shape
    return DecodePlan(
        max_batch=len(case.rows),
        num_heads=num_heads,
        num_kv_heads=case.k_cache.shape[2],
        head_dim=head_dim,
        device=case.q_THD.device,
        num_processors=4,
        kv_dtype=case.k_cache.dtype,
        window=window,
        batch_invariant=batch_invariant,
    )


def decode(case: Case, plan: DecodePlan) -> torch.Tensor:
    plan.update(case.seq_lens_B, case.rows_B)
    # Between the two, as in a step, a kernel that does not start early.
    out_BHD = torch.full_like(case.q_THD, float("nan"))
    decode_attention(
        case.q_THD,
        case.k_cache,
        case.v_cache,
        case.block_table_RM,
        plan,
        out_BHD,
        scale=case.scale,
        k_scale=case.k_scale,
        v_scale=case.v_scale,
    )
    return out_BHD


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 4, 7])
def test_decode_equals_the_reference(device: str, head_dim: int, group: int) -> None:
    case = make_case(
        device, seq_lens=[1, 33, 130], num_heads=2 * group, num_kv_heads=2, head_dim=head_dim
    )

    out_BHD = decode(case, make_plan(case))

    assert relative_error(out_BHD, case.expected()) < ERRORS[torch.float32]


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
def test_decode_reads_blocks_of_any_size(device: str, block_size: int) -> None:
    case = make_case(device, seq_lens=[17, 256, 300], block_size=block_size)

    assert relative_error(decode(case, make_plan(case)), case.expected()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_fp8", [False, True])
def test_decode_takes_half_precision_and_fp8(device: str, dtype: torch.dtype, is_fp8: bool) -> None:
    case = make_case(
        device, seq_lens=[5, 200], dtype=dtype, kv_dtype=FP8 if is_fp8 else None, head_dim=128
    )

    assert relative_error(decode(case, make_plan(case)), case.expected()) < ERRORS[dtype]


def test_a_long_sequence_among_short_ones_is_split_and_merged(device: str) -> None:
    case = make_case(device, seq_lens=[40, 3000, 7, 0, 500])
    plan = make_plan(case)

    out_BHD = decode(case, plan)

    items = plan.items_I8[: int(plan.num_items)].tolist()
    assert items[0][0] == 1, "the longest comes first"
    assert items[0][5] > 4
    assert len(items) <= plan.num_items_bound(5)
    assert relative_error(out_BHD, case.expected()) < 1e-5
    assert int(plan.arrivals_BN.abs().sum()) == 0, "the next layer counts from zero"


def test_a_padding_slot_gets_zeros(device: str) -> None:
    case = make_case(device, seq_lens=[0, 20, 0])

    out_BHD = decode(case, make_plan(case))

    assert out_BHD[0].abs().sum() == 0
    assert out_BHD[2].abs().sum() == 0
    assert relative_error(out_BHD, case.expected()) < 1e-5


@pytest.mark.parametrize("window", [1, 16, 100, 1000])
def test_a_window_hides_older_keys(device: str, window: int) -> None:
    case = make_case(device, seq_lens=[3, 99, 700])

    out_BHD = decode(case, make_plan(case, window))

    assert relative_error(out_BHD, case.expected(window)) < 1e-5


def test_a_plan_serves_any_smaller_batch(device: str) -> None:
    large = make_case(device, seq_lens=[30, 500, 20, 90, 64])
    small = make_case(device, seq_lens=[129], seed=1)
    plan = make_plan(large)

    decode(large, plan)

    assert relative_error(decode(small, plan), small.expected()) < 1e-5


def test_batch_invariant_bits_do_not_depend_on_the_batch(device: str) -> None:
    together = make_case(device, seq_lens=[1500, 8, 700, 64], dtype=torch.bfloat16)
    plan = make_plan(together, batch_invariant=True)

    out_BHD = decode(together, plan)

    for slot in range(4):
        alone = Case(
            **vars(together)
            | {
                "q_THD": together.q_THD[slot : slot + 1],
                "rows": together.rows[slot : slot + 1],
                "seq_lens": together.seq_lens[slot : slot + 1],
                "query_lens": [1],
            }
        )
        assert torch.equal(decode(alone, plan)[0], out_BHD[slot])


def test_few_batches_reach_every_form_of_the_kernels() -> None:
    plan = DecodePlan(
        max_batch=256,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        device=torch.device("meta"),
        num_processors=132,
        kv_dtype=torch.bfloat16,
    )

    batches = plan.variant_batches(256)

    assert {plan.tiles(size) for size in batches} == {plan.tiles(n) for n in range(1, 257)}
    assert len(batches) <= 8


@pytest.mark.gpu
def test_a_very_long_sequence_is_read_whole() -> None:
    case = make_case(
        "cuda",
        seq_lens=[131072, 300],
        num_heads=8,
        num_kv_heads=2,
        head_dim=128,
        dtype=torch.bfloat16,
    )

    assert relative_error(decode(case, make_plan(case)), case.expected()) < 1e-2


@pytest.mark.gpu
def test_a_captured_step_follows_new_lengths() -> None:
    case = make_case("cuda", seq_lens=[3000, 64, 700], dtype=torch.bfloat16, head_dim=128)
    plan = make_plan(case)
    seq_lens_B, rows_B = case.seq_lens_B, case.rows_B
    outs = [torch.empty_like(case.q_THD) for _ in range(8)]

    def step() -> None:
        plan.update(seq_lens_B, rows_B)
        q_THD = case.q_THD.clone()  # a kernel that does not start early, as a step has
        for out_BHD in outs:
            decode_attention(
                q_THD,
                case.k_cache,
                case.v_cache,
                case.block_table_RM,
                plan,
                out_BHD,
                scale=case.scale,
            )

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    for lengths in ([3000, 64, 700], [1, 0, 699], [2048, 5, 0]):
        shorter = Case(**vars(case) | {"seq_lens": lengths})
        seq_lens_B.copy_(shorter.seq_lens_B)
        graph.replay()
        for out_BHD in outs:
            assert relative_error(out_BHD, shorter.expected()) < 1e-2
