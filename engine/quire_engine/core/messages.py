"""What crosses between a frontend and the core. Plain dataclasses: msgspec packs them as they are.

A frontend may be in the same process (`LLM`) or in another (the server); the core does not care.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from quire_engine.sampling_params import SamplingParams


class FinishReason(StrEnum):
    """Why a sequence ended; the values are OpenAI's and vLLM's."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(slots=True, kw_only=True)
class NewSequence:
    """One completion to generate. A request with n > 1 becomes n of these."""

    seq_id: int
    """Unique for the life of the core; chosen by the frontend."""
    prompt_token_ids: list[int]
    params: SamplingParams
    """With n == 1 and, when the request was seeded, a seed of its own per completion."""
    bad_words_token_ids: list[list[int]] = field(default_factory=list)
    """`params.bad_words`, tokenized by the frontend."""
    priority: int = 0
    """Lower is served first."""
    arrival_s: float = 0.0
    """`time.monotonic` at the frontend; orders equal priorities."""
    cache_salt: str = ""


@dataclass(slots=True, kw_only=True)
class TokenLogprobs:
    """Logprobs of one position: the chosen (or prompt) token first, then the top ones in order."""

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]
    """1 is the most likely token of the vocabulary."""


@dataclass(slots=True, kw_only=True)
class SequenceOutput:
    """What one step produced for one sequence."""

    seq_id: int
    token_ids: list[int] = field(default_factory=list)
    """New tokens; a stop token or end-of-sequence is included."""
    logprobs: list[TokenLogprobs] | None = None
    """One per new token, when asked for."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """One per prompt token from the second on; sent once, with the first token."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The `stop_token_ids` entry that ended it; None for end-of-sequence."""
    error: str | None = None
    """With FinishReason.ERROR: what went wrong, for the client."""
    error_kind: str | None = None
    """With FinishReason.ERROR: the class of `errors.py` it is, such as QueueFullError; None when
    the step that computed it failed."""
    num_cached_tokens: int | None = None
    """Prompt tokens found in the cache; sent with the first token."""
    scheduled_s: float | None = None
    """`time.monotonic` of the first step that computed a token of it; sent with the first token."""
    num_preemptions: int = 0
    """Of this sequence, so far."""


@dataclass(slots=True, kw_only=True)
class KvEvents:
    """Changes to the set of cached blocks, in order: stored, removed. Hashes: `rpc/prefix.py`."""

    stored: list[tuple[int, list[int]]] = field(default_factory=list)
    """(parent hash, or ROOT_HASH; hashes of consecutive blocks that follow it)."""
    removed: list[int] = field(default_factory=list)
    cleared: bool = False
    """Everything was dropped before the other changes."""


@dataclass(slots=True, kw_only=True)
class CoreStats:
    """State after a step, and totals since start. All but the gauges only ever grow."""

    num_running: int = 0
    num_waiting: int = 0
    num_held: int = 0
    """Of those that wait: for a prefix that another sequence is computing."""
    waits_for: str = ""
    """What keeps the first of the others: seats, kv_space or budget."""
    num_waiting_uncached_tokens: int = 0
    """Prompt tokens still to compute: waiting sequences and running prefills."""
    num_used_blocks: int = 0
    """Blocks held by live sequences (cached but unreferenced blocks are free)."""
    num_total_blocks: int = 0
    num_steps: int = 0
    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    """Prompt tokens computed."""
    num_generated_tokens: int = 0
    num_prefix_queried_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_recomputed_tokens: int = 0
    """Computed again after a preemption."""
    num_overrun_tokens: int = 0
    """Computed for sequences that had ended while the step was in flight."""
    step_s: float = 0.0
    """Duration of the last step."""
    step_num_tokens: int = 0
    """Tokens computed in the last step."""
    step_num_prefill_tokens: int = 0
    busy_s: float = 0.0
    """Time spent in steps."""
    prefill_tokens_per_s: float = 0.0
    """Moving average over steps that prefilled; 0 before the first."""
    decode_step_s: float = 0.0
    """Moving average over steps that only decoded; 0 before the first."""
    num_compiles_after_ready: int = 0
    """Kernels that were compiled while requests waited for them."""


@dataclass(slots=True, kw_only=True)
class StepOutputs:
    """Everything a frontend hears about one step."""

    outputs: list[SequenceOutput] = field(default_factory=list)
    stats: CoreStats = field(default_factory=CoreStats)
    kv_events: KvEvents | None = None


@dataclass(slots=True, kw_only=True)
class Roofline:
    """What bounds a step: bytes to read, arithmetic to do, and how fast the device does both."""

    weight_bytes: int
    """Read by every step."""
    block_bytes: int
    """Keys and values of a block, all layers."""
    num_parameters: int
    """Those that every token of a prompt is multiplied with."""
    attention_width: int = 0
    """Query heads times their size, all layers together."""
    is_8_bit: bool = False
    """Products are of 8-bit numbers: a GPU does twice as many."""
    peak_bytes_per_s: float = 0.0
    """Of the device's memory; 0: unknown."""
    peak_flops: float = 0.0
    """Of the type that the model computes in; 0: unknown."""

    def bytes_read(self, num_blocks: float) -> float:
        """Return what a step reads that attends to so many blocks."""
        return self.weight_bytes + num_blocks * self.block_bytes

    def flops(self, num_tokens: float, num_pairs: float = 0.0) -> float:
        """Return the arithmetic of tokens, and of attention between pairs of them."""
        return 2.0 * self.num_parameters * num_tokens + 4.0 * self.attention_width * num_pairs

    def shares(self, stats: CoreStats) -> dict[str, float]:
        """Return the share of the peak that the last steps reached, by phase, as far as known."""
        shares = {}
        if self.peak_bytes_per_s and stats.decode_step_s:
            num_bytes = self.bytes_read(stats.num_used_blocks)
            shares["decode"] = num_bytes / stats.decode_step_s / self.peak_bytes_per_s
        if self.peak_flops and stats.prefill_tokens_per_s:
            shares["prefill"] = self.flops(stats.prefill_tokens_per_s) / self.peak_flops
        return shares


@dataclass(slots=True, kw_only=True)
class CoreReady:
    """What a core process says once: it can serve now."""

    num_blocks: int
    block_size: int
    max_model_len: int
    """Longest prompt and completion together: the runner's, and what the cache can hold."""
    max_num_seqs: int
    max_num_batched_tokens: int
    dtype: str = ""
    device: str = ""
    load_report: dict[str, float] = field(default_factory=dict)
    """Seconds by phase of start-up, in order; the runner's `load_report`."""
    roofline: Roofline | None = None
