"""One GPU's memory: weights, what running takes besides, and the cache that is left.

gpu_bytes
|-- reserved by the driver
|-- budget_bytes = gpu_memory_utilization * the rest
|   |-- weights      a share of the layers, of the embedding and of the head
|   |-- context      CUDA, libraries, communication
|   |-- activations  the largest step
|   |-- graphs
|   `-- kv_bytes     what is left
`-- not used
"""

from dataclasses import dataclass

from quire_operator.capacity.errors import CapacityError
from quire_operator.capacity.footprint import Footprint
from quire_operator.capacity.tensor_parallel import check_tensor_parallel
from quire_operator.capacity.units import MIB

DEFAULT_UTILIZATION = 0.92
RESERVED_BYTES = 600 * MIB
"""What the driver keeps of the memory that a GPU is labelled with."""
CONTEXT_BYTES = 600 * MIB
"""CUDA context, cuBLAS workspaces, loaded kernels."""
SLACK_BYTES = 256 * MIB
"""What the engine keeps back for what libraries allocate late."""
COMMUNICATION_BYTES = 512 * MIB
"""NCCL's and symmetric memory's buffers of a GPU in a group."""
GRAPH_BYTES = 512 * MIB
"""CUDA graphs of the decode sizes."""
UNKNOWN_STEP_BYTES = 1024 * MIB
UNKNOWN_STEP_SHARE = 0.05
"""Activations and tables of an unknown architecture: so much, and a share of its weights."""
INT_BYTES = 4
"""Of a token in the tables, and of a logit while it is edited."""
COUNT_BYTES = 2
MAX_EDITED = 64
"""Sequences whose logits are edited at a time."""
PROMPT_TOKENS = 8192
"""Of prompts in a step, unless the engine is told; decodes come on top."""
MIN_TOKENS = 2048
"""Cache without which a model is of no use, where no length is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How a model is to be run: the engine's flags of the same names."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float = DEFAULT_UTILIZATION
    max_model_len: int | None = None
    """Longest request; None: what the model is made for, or less where the cache is smaller."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    """None: PROMPT_TOKENS and a decode of each sequence."""
    block_size: int = 16

    def __post_init__(self) -> None:
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise CapacityError(
                f"gpu_memory_utilization must be in (0, 1], not {self.gpu_memory_utilization}"
            )
        for name in (
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "block_size",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CapacityError(f"{name} must be at least 1, not {value}")

    @property
    def step_tokens(self) -> int:
        """Most tokens of a step."""
        return self.max_num_batched_tokens or PROMPT_TOKENS + self.max_num_seqs


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
    """Peak of the largest step."""
    table_bytes: int
    """What is kept of live sequences: logits, tokens, block tables, counts of tokens."""
    graph_bytes: int
    """CUDA graphs."""
    kv_bytes: int
    """What is left for keys and values; 0 if nothing is."""
    kv_bytes_per_token: int
    kv_bytes_per_request: int
    """Of one request of `max_model_len` tokens."""
    max_model_len: int
    """Longest request: as asked for, else what model and cache allow."""
    num_tokens: int
    """Tokens that the cache holds."""
    num_full_requests: float
    """Requests of `max_model_len` tokens that it holds."""
    needed_gpu_bytes: int
    """Smallest GPU that does: one full-length request if its length is asked for."""

    @property
    def overhead_bytes(self) -> int:
        """Everything but weights and cache."""
        step = self.activation_bytes + self.table_bytes
        return self.context_bytes + step + self.graph_bytes

    @property
    def short_bytes(self) -> int:
        """What the GPU lacks; 0: it fits."""
        return max(0, self.needed_gpu_bytes - self.gpu_bytes)

    @property
    def fits(self) -> bool:
        """Whether the model and what has to be cached at least fit."""
        return self.short_bytes == 0


def plan_memory(footprint: Footprint, workload: Workload, gpu_bytes: int) -> MemoryPlan:
    """Divide the memory of one GPU of a group.

    Raises:
        CapacityError: the workload cannot be, as with heads that do not divide.
    """
    _check(footprint, workload)
    weights = weight_bytes_per_gpu(footprint, workload)
    context = CONTEXT_BYTES + SLACK_BYTES
    if workload.tensor_parallel_size * workload.pipeline_parallel_size > 1:
        context += COMMUNICATION_BYTES
    activations = activation_bytes(footprint, workload)
    tables = table_bytes(footprint, workload)
    fixed = weights + context + activations + tables + GRAPH_BYTES
    budget = int(max(0, gpu_bytes - RESERVED_BYTES) * workload.gpu_memory_utilization)
    kv = max(0, budget - fixed)
    per_token = _kv_bytes_per_token(footprint, workload)
    num_tokens = kv // (per_token * workload.block_size) * workload.block_size
    asked_len = workload.max_model_len
    max_model_len = asked_len or max(1, min(footprint.max_position, num_tokens))
    num_least = _in_blocks(asked_len or min(footprint.max_position, MIN_TOKENS), workload)
    needed = (fixed + num_least * per_token) / workload.gpu_memory_utilization
    return MemoryPlan(
        gpu_bytes=gpu_bytes,
        budget_bytes=budget,
        weight_bytes=weights,
        context_bytes=context,
        activation_bytes=activations,
        table_bytes=tables,
        graph_bytes=GRAPH_BYTES,
        kv_bytes=kv,
        kv_bytes_per_token=per_token,
        kv_bytes_per_request=_in_blocks(max_model_len, workload) * per_token,
        max_model_len=max_model_len,
        num_tokens=num_tokens,
        num_full_requests=num_tokens / _in_blocks(max_model_len, workload),
        needed_gpu_bytes=int(needed) + 1 + RESERVED_BYTES,
    )


def weight_bytes_per_gpu(footprint: Footprint, workload: Workload) -> int:
    """Return the weights of the fullest GPU: a tensor's share of a pipeline's stage."""
    tensor, pipeline = workload.tensor_parallel_size, workload.pipeline_parallel_size
    stage = _ceil_div(footprint.num_layers, pipeline) / footprint.num_layers
    layers = (footprint.layer_bytes - footprint.replicated_bytes) * stage / tensor
    replicated = footprint.replicated_bytes * stage
    head = footprint.head_bytes or footprint.embedding_bytes
    ends = footprint.embedding_bytes + footprint.head_bytes
    # The first stage has the embedding and the last one the head, be they one or two tensors.
    outside = ends if pipeline == 1 else max(footprint.embedding_bytes, head)
    return int(layers + replicated + outside / tensor)


def activation_bytes(footprint: Footprint, workload: Workload) -> int:
    """Return the peak of the largest step, as the decoder allocates it."""
    if not footprint.hidden_size:
        share = UNKNOWN_STEP_SHARE * weight_bytes_per_gpu(footprint, workload)
        return int(UNKNOWN_STEP_BYTES + share)
    # The residual and its norm; heads; gate and up side by side, and their product.
    shared = footprint.attention_width + 3 * footprint.mlp_width
    width = 2 * footprint.hidden_size + shared / workload.tensor_parallel_size
    return int(workload.step_tokens * footprint.activation_dtype_bytes * width)


def table_bytes(footprint: Footprint, workload: Workload) -> int:
    """Return what the engine keeps of all sequences that may be live, as it allocates it."""
    size, vocab = footprint.activation_dtype_bytes, footprint.vocab_size
    longest = workload.max_model_len or footprint.max_position
    num_seqs = workload.max_num_seqs
    tokens = (num_seqs + 1) * longest * INT_BYTES * (1 + 1 / workload.block_size)
    logits = num_seqs * vocab * (size + COUNT_BYTES) + min(num_seqs, MAX_EDITED) * vocab * INT_BYTES
    rope = longest * footprint.head_dim * size
    return int(tokens + logits + rope)


def _kv_bytes_per_token(footprint: Footprint, workload: Workload) -> int:
    stages = workload.pipeline_parallel_size
    layers = _ceil_div(footprint.num_layers, stages) / footprint.num_layers
    return max(1, int(footprint.kv_bytes_per_token * layers / workload.tensor_parallel_size))


def _check(footprint: Footprint, workload: Workload) -> None:
    problem = check_tensor_parallel(footprint, workload.tensor_parallel_size)
    # The heads of an estimate are a guess, which is no reason to refuse anything.
    if problem and not footprint.is_estimate:
        raise CapacityError(problem)
    stages = workload.pipeline_parallel_size
    if stages > footprint.num_layers > 1:
        raise CapacityError(
            f"a pipeline of {stages} stages has more stages than the model's "
            f"{footprint.num_layers} layers"
        )
    asked_len = workload.max_model_len
    if asked_len is not None and asked_len > footprint.max_position and not footprint.is_estimate:
        raise CapacityError(
            f"max_model_len={asked_len} is more than the model's {footprint.max_position} tokens"
        )


def _in_blocks(num_tokens: int, workload: Workload) -> int:
    return _ceil_div(num_tokens, workload.block_size) * workload.block_size


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
