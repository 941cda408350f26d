"""Which numbers of GPUs can share a model's layers."""

from quire_operator.capacity.footprint import Footprint

MAX_TENSOR_PARALLEL = 16


def tensor_parallel_sizes(
    footprint: Footprint, *, at_most: int = MAX_TENSOR_PARALLEL
) -> tuple[int, ...]:
    """Return the tensor-parallel sizes that divide the model's heads, smallest first."""
    raise NotImplementedError


def check_tensor_parallel(footprint: Footprint, size: int) -> str:
    """Return "" if the model can be shared by `size` GPUs, else why not and what would do.

    "tensor parallel size 3 does not divide 32 attention heads and 8 key/value heads; 1, 2, 4 and 8
    do".
    """
    raise NotImplementedError
