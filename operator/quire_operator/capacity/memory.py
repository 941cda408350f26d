"""One GPU's memory: weights, what running takes besides, and the cache that is left."""

from dataclasses import dataclass

from quire_operator.capacity.footprint import Footprint

DEFAULT_UTILIZATION = 0.92


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How a model is to be run: the engine's flags of the same names."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float = DEFAULT_UTILIZATION
    max_model_len: int | None = None
    """Longest request; None: what the model is made for."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    block_size: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Where one GPU's memory goes; sizes in bytes, of the fullest GPU of the group."""

    gpu_bytes: int
    """The whole memory, as GPU Feature Discovery labels it."""
    budget_bytes: int
    """What the engine may use of it, by `gpu_memory_utilization`."""
    weight_bytes: int
    context_bytes: int
    """CUDA context, libraries, communication buffers."""
    activation_bytes: int
    """Peak of the largest step, logits included."""
    graph_bytes: int
    """CUDA graphs."""
    kv_bytes: int
    """What is left for keys and values; 0 if nothing is."""
    kv_bytes_per_token: int
    kv_bytes_per_request: int
    """Of one request of `max_model_len` tokens."""
    max_model_len: int
    num_tokens: int
    """Tokens that the cache holds."""
    num_full_requests: float
    """Requests of `max_model_len` tokens that it holds."""
    needed_gpu_bytes: int
    """Smallest GPU that holds the model and one full-length request at this utilization."""

    @property
    def overhead_bytes(self) -> int:
        """Everything but weights and cache."""
        return self.context_bytes + self.activation_bytes + self.graph_bytes

    @property
    def short_bytes(self) -> int:
        """What the GPU lacks for one full-length request; 0: it fits."""
        return max(0, self.needed_gpu_bytes - self.gpu_bytes)

    @property
    def fits(self) -> bool:
        """Whether the model and one full-length request fit."""
        return self.short_bytes == 0


def plan_memory(footprint: Footprint, workload: Workload, gpu_bytes: int) -> MemoryPlan:
    """Divide the memory of one GPU of a group.

    Raises:
        CapacityError: the workload cannot be, as with heads that do not divide.
    """
    raise NotImplementedError
