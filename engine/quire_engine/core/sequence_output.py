"""What a step means for a sequence, as its client will hear of it."""

from quire_engine.core.messages import FinishReason, SequenceOutput
from quire_engine.core.sequence import Sequence
from quire_engine.runner.plan import StepResult


def describe_token(sequence: Sequence, result: StepResult) -> SequenceOutput:
    """Describe the sequence's last token, which `result` brought."""
    seq_id = sequence.seq_id
    finish_reason, stop_token_id = sequence.ending()
    output = SequenceOutput(
        seq_id=seq_id,
        token_ids=sequence.token_ids[-1:],
        finish_reason=finish_reason,
        stop_token_id=stop_token_id,
        num_preemptions=sequence.num_preemptions,
    )
    if seq_id in result.logprobs:
        output.logprobs = [result.logprobs[seq_id]]
    if sequence.is_first_token:
        _describe_start(sequence, output, result)
    return output


def describe_failure(sequence: Sequence, message: str) -> SequenceOutput:
    """Describe the end of a sequence whose step could not be computed."""
    return SequenceOutput(
        seq_id=sequence.seq_id,
        finish_reason=FinishReason.ERROR,
        error=message,
        num_preemptions=sequence.num_preemptions,
    )


def _describe_start(sequence: Sequence, output: SequenceOutput, result: StepResult) -> None:
    output.num_cached_tokens = sequence.num_cached_tokens
    output.scheduled_s = sequence.scheduled_s
    if sequence.new.params.prompt_logprobs is not None:
        last_chunk = result.prompt_logprobs.get(sequence.seq_id, [])
        output.prompt_logprobs = sequence.prompt_logprobs + last_chunk
        sequence.prompt_logprobs = []
