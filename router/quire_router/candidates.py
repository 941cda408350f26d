"""From live replicas to the snapshot that the policy decides on."""

from collections.abc import Sequence

from quire_router.policy import Candidate, prefill_rates
from quire_router.replica import Replica

DEFAULT_PREFILL_RATE = 8000.0
"""Prompt tokens per second of an engine while none has measured its own."""
DEFAULT_DECODE_STEP_S = 0.02
EXPECTED_OUTPUT_TOKENS = 200
"""How long a running request keeps its seat; only matters when all are taken."""


def snapshot(replicas: Sequence[Replica], cached_tokens: Sequence[int]) -> list[Candidate]:
    """Return one candidate per replica, in order, with what each has cached of the prompt."""
    measured = [replica.load.report.prefill_tokens_per_s for replica in replicas]
    kinds = [_hardware(replica) for replica in replicas]
    rates = prefill_rates(kinds, measured, default=DEFAULT_PREFILL_RATE)
    return list(map(_candidate, replicas, cached_tokens, rates))


def _candidate(replica: Replica, cached_tokens: int, prefill_rate: float) -> Candidate:
    info, load = replica.info, replica.load
    decode_step_s = load.report.decode_step_s or DEFAULT_DECODE_STEP_S
    return Candidate(
        name=replica.address,
        cached_tokens=cached_tokens,
        queued_tokens=load.queued_tokens,
        num_active=load.num_active,
        prefill_rate=prefill_rate,
        block_size=info.block_size or 1,
        num_used_blocks=load.num_used_blocks,
        num_total_blocks=load.report.num_total_blocks,
        max_active=info.max_num_seqs,
        seat_release_s=decode_step_s * EXPECTED_OUTPUT_TOKENS / (info.max_num_seqs or 1),
        last_chosen=replica.last_chosen,
    )


def _hardware(replica: Replica) -> str:
    info = replica.info
    return f"{info.device} {info.dtype} {info.max_num_batched_tokens}"
