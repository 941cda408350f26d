"""Which numbers of GPUs can share a model's layers."""

from quire_operator.capacity.footprint import Footprint

MAX_TENSOR_PARALLEL = 16


def tensor_parallel_sizes(
    footprint: Footprint, *, at_most: int = MAX_TENSOR_PARALLEL
) -> tuple[int, ...]:
    """Return the tensor-parallel sizes that divide the model's heads, smallest first."""
    return tuple(size for size in range(1, at_most + 1) if _divides(footprint, size))


def check_tensor_parallel(footprint: Footprint, size: int) -> str:
    """Return "" if the model can be shared by `size` GPUs, else why not and what would do.

    "a tensor-parallel size of 3 does not divide 32 attention heads and 8 key/value heads; 1, 2, 4
    and 8 do".
    """
    if size < 1:
        return f"a tensor-parallel size must be at least 1, not {size}"
    if _divides(footprint, size):
        return ""
    legal = tensor_parallel_sizes(footprint)
    return (
        f"a tensor-parallel size of {size} does not divide {footprint.num_heads} attention heads "
        f"and {footprint.num_kv_heads} key/value heads; {_list(legal)}"
    )


def _divides(footprint: Footprint, size: int) -> bool:
    # A remainder of 0 also for counts of 0: what is unknown rules nothing out.
    return footprint.num_heads % size == 0 and footprint.num_kv_heads % size == 0


def _list(sizes: tuple[int, ...]) -> str:
    *others, last = map(str, sizes)
    return f"{', '.join(others)} and {last} do" if others else f"only {last} does"
