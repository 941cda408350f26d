from typing import Any

import pytest
from hypothesis import given, strategies as st

from quire_operator.capacity import (
    GIB,
    CapacityError,
    Footprint,
    MemoryPlan,
    Workload,
    check_tensor_parallel,
    footprint_of_name,
    footprint_of_sizes,
    plan_memory,
    tensor_parallel_sizes,
)

H200 = 143771 << 20
A10 = 23028 << 20


def footprint(name: str = "8B", **flags: str) -> Footprint:
    found = footprint_of_name(name, **flags)
    assert found is not None
    return found


def plan(name: str = "8B", gpu_bytes: int = H200, **workload: Any) -> MemoryPlan:
    return plan_memory(footprint(name), Workload(**workload), gpu_bytes)


def test_the_parts_add_up_to_the_budget() -> None:
    found = plan()

    assert found.weight_bytes + found.overhead_bytes + found.kv_bytes == found.budget_bytes
    assert found.budget_bytes < 0.92 * H200


def test_the_cache_is_counted_in_tokens_and_in_full_length_requests() -> None:
    found = plan(max_model_len=8192)

    assert found.kv_bytes_per_token == 131072
    assert found.kv_bytes_per_request == GIB
    assert found.num_tokens == found.kv_bytes // (16 * 131072) * 16
    assert found.num_full_requests == found.num_tokens / 8192


def test_a_tensor_parallel_group_shares_weights_and_cache() -> None:
    one, two = plan("70B", tensor_parallel_size=1), plan("70B", tensor_parallel_size=2)

    assert two.weight_bytes == pytest.approx(one.weight_bytes / 2, rel=0.001)
    assert two.kv_bytes_per_token * 2 == one.kv_bytes_per_token


def test_a_pipeline_stage_has_its_layers_and_one_end() -> None:
    one, two = plan("70B"), plan("70B", pipeline_parallel_size=2)

    half = (one.weight_bytes - 2 * footprint("70B").embedding_bytes) / 2
    assert two.weight_bytes == pytest.approx(half + footprint("70B").embedding_bytes, rel=0.001)
    assert two.kv_bytes_per_token * 2 == one.kv_bytes_per_token


def test_a_model_that_is_too_large_says_by_how_much() -> None:
    found = plan("70B", A10)

    assert not found.fits
    assert found.num_tokens == 0
    assert found.num_full_requests == 0
    assert found.needed_gpu_bytes - A10 == found.short_bytes > 100 * GIB


def test_a_length_that_nobody_asked_for_shrinks_to_the_cache() -> None:
    found = plan("8B", A10)

    assert found.fits
    assert found.max_model_len == found.num_tokens < 32768
    assert not plan("8B", A10, max_model_len=32768).fits


@given(
    name=st.sampled_from(["0.5B", "8B", "70B", "405B"]),
    gpu_gib=st.integers(8, 300),
    tensor=st.sampled_from([1, 2, 4, 8]),
    utilization=st.floats(0.3, 1.0),
    max_model_len=st.none() | st.integers(1, 32768),
)
def test_what_is_needed_is_what_just_fits(
    name: str, gpu_gib: int, tensor: int, utilization: float, max_model_len: int | None
) -> None:
    model = footprint(name)
    workload = Workload(
        tensor_parallel_size=tensor,
        gpu_memory_utilization=utilization,
        max_model_len=max_model_len,
    )
    found = plan_memory(model, workload, gpu_gib * GIB)
    just = plan_memory(model, workload, found.needed_gpu_bytes)

    assert just.fits
    assert found.fits == (gpu_gib * GIB >= found.needed_gpu_bytes)
    if max_model_len is not None:
        assert just.num_tokens >= max_model_len
        assert found.fits == (found.num_full_requests >= 1)


@given(tensor=st.sampled_from([1, 2, 4]), gpu_gib=st.integers(20, 200))
def test_more_gpus_and_larger_ones_never_hold_fewer_tokens(tensor: int, gpu_gib: int) -> None:
    here = plan("8B", gpu_gib * GIB, tensor_parallel_size=tensor).num_tokens

    assert plan("8B", (gpu_gib + 1) * GIB, tensor_parallel_size=tensor).num_tokens >= here
    assert plan("8B", gpu_gib * GIB, tensor_parallel_size=2 * tensor).num_tokens >= here


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization must be in \(0, 1\], not 1.5"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be at least 1, not 0"),
        ({"max_model_len": 0}, "max_model_len must be at least 1, not 0"),
    ],
)
def test_a_workload_out_of_range_is_refused(workload: dict[str, Any], message: str) -> None:
    with pytest.raises(CapacityError, match=message):
        Workload(**workload)


def stated(**counts: Any) -> Footprint:
    return footprint_of_sizes(
        weight_bytes=GIB, kv_bytes_per_token=1024, max_position=4096, **counts
    )


def test_tensor_parallel_sizes_divide_the_heads() -> None:
    assert tensor_parallel_sizes(stated(num_heads=28, num_kv_heads=4)) == (1, 2, 4)
    assert tensor_parallel_sizes(stated(num_heads=9, num_kv_heads=3)) == (1, 3)
    assert tensor_parallel_sizes(stated(), at_most=4) == (1, 2, 3, 4)


def test_a_size_that_does_not_divide_names_those_that_do() -> None:
    model = stated(num_heads=32, num_kv_heads=8)

    assert check_tensor_parallel(model, 4) == ""
    assert check_tensor_parallel(model, 3) == (
        "a tensor-parallel size of 3 does not divide 32 attention heads and 8 key/value heads; "
        "1, 2, 4 and 8 do"
    )
    assert check_tensor_parallel(stated(num_heads=7, num_kv_heads=1), 2).endswith("only 1 does")
    with pytest.raises(CapacityError, match="does not divide 32 attention heads"):
        plan_memory(model, Workload(tensor_parallel_size=3), H200)


def test_the_heads_of_an_estimate_refuse_nothing() -> None:
    assert plan("8B", tensor_parallel_size=16).num_tokens > 0


def test_a_length_beyond_the_model_is_refused() -> None:
    with pytest.raises(CapacityError, match="max_model_len=5000 is more than the model's 4096"):
        plan_memory(stated(), Workload(max_model_len=5000), H200)
