"""A model that costs nothing: deterministic tokens after a wait given by a cost model.

The next token is a pure function of the sequence so far, as it is for a real model that decodes
greedily: it does not change with the batch, after preemption, or when a generation is continued
from its prompt and its first tokens.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import xxhash

from quire_engine.config import EngineConfig, option
from quire_engine.core.messages import TokenLogprobs
from quire_engine.errors import ConfigError
from quire_engine.rpc.prefix import pack_tokens
from quire_engine.runner.plan import AdmittedSequence, ImmediateRunner, StepPlan, StepResult
from quire_engine.sampling_params import SamplingParams
from quire_engine.testing.tokenizer import EOS_TOKEN_ID

LETTERS = b"etaoinshrdlu     "
DEFAULT_NUM_BLOCKS = 4096
DEFAULT_MAX_MODEL_LEN = 8192
DEFAULT_MAX_NUM_BATCHED_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeModel:
    """What the fake model says, and how long each step takes. The defaults cost nothing."""

    prefill_tokens_per_s: float = option(0.0, "prompt tokens computed a second; 0: no time")
    decode_ms: float = option(0.0, "milliseconds of every step")
    sequence_ms: float = option(0.0, "milliseconds that each sequence adds to a step")
    script: str = option("", "what every completion says; empty: letters that follow the prompt")
    num_output_tokens: int = option(
        0, "end-of-sequence comes after so many tokens; 0: only max_tokens ends a completion"
    )

    def __post_init__(self) -> None:
        for name in ("prefill_tokens_per_s", "decode_ms", "sequence_ms", "num_output_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, not {getattr(self, name)}")

    def step_s(self, *, num_prefill_tokens: int, num_sequences: int) -> float:
        """Return how long a step takes."""
        prefill_s = num_prefill_tokens / (self.prefill_tokens_per_s or float("inf"))
        return prefill_s + (self.decode_ms + self.sequence_ms * num_sequences) / 1000


class FakeSequence:
    """A sequence's row: how long it is, how far computed, and a hash of all its tokens."""

    def __init__(self, admitted: AdmittedSequence) -> None:
        self.params = admitted.params
        self.token_ids = list(admitted.token_ids)
        self.num_prompt_tokens = admitted.num_prompt_tokens
        self.num_computed = admitted.num_computed_tokens
        self._hash = xxhash.xxh3_64(pack_tokens(admitted.token_ids), seed=_seed(admitted.params))

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def advance(self, num_tokens: int) -> bool:
        """Compute tokens; return whether the next one is due."""
        self.num_computed += num_tokens
        return self.num_computed == len(self.token_ids)

    def sample(self, model: FakeModel) -> int:
        """Choose the next token and append it."""
        token = self._next_token(model)
        self.token_ids.append(token)
        self._hash.update(pack_tokens([token]))
        return token

    def _next_token(self, model: FakeModel) -> int:
        script = model.script.encode()
        end = model.num_output_tokens or len(script)
        may_end = self.num_generated >= self.params.min_tokens and not self.params.ignore_eos
        if end and self.num_generated >= end and may_end:
            return EOS_TOKEN_ID
        if script:
            return script[self.num_generated % len(script)]
        return LETTERS[self._hash.intdigest() % len(LETTERS)]


class FakeRunner(ImmediateRunner):
    """Runs plans by waiting; implements `ModelRunner`.

    `slowdown` multiplies the time of each step; `before_step`, where set, is called first and may
    block or raise, which is how a test makes a model hang or die.
    """

    device = "cpu"

    def __init__(
        self,
        model: FakeModel,
        *,
        num_blocks: int = DEFAULT_NUM_BLOCKS,
        max_model_len: int = DEFAULT_MAX_MODEL_LEN,
        max_num_batched_tokens: int = DEFAULT_MAX_NUM_BATCHED_TOKENS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.model = model
        self.slowdown = 1.0
        self.before_step: Callable[[], None] | None = None
        self._num_blocks = num_blocks
        self._max_model_len = max_model_len
        self._max_num_batched_tokens = max_num_batched_tokens
        self._sleep = sleep
        self._rows: dict[int, FakeSequence] = {}

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    @property
    def max_num_batched_tokens(self) -> int:
        return self._max_num_batched_tokens

    def execute(self, plan: StepPlan) -> StepResult:
        for seq_id in plan.dropped:
            self._rows.pop(seq_id, None)
        for admitted in plan.admitted:
            self._rows[admitted.seq_id] = FakeSequence(admitted)
        if not plan.num_tokens:
            return StepResult()
        if self.before_step is not None:
            self.before_step()
        self._wait(plan)
        return self._compute(plan)

    def _wait(self, plan: StepPlan) -> None:
        prefill = sum(num for num in plan.num_tokens.values() if num > 1)
        step_s = self.model.step_s(num_prefill_tokens=prefill, num_sequences=len(plan.num_tokens))
        if step_s > 0:
            self._sleep(step_s * self.slowdown)

    def _compute(self, plan: StepPlan) -> StepResult:
        result = StepResult()
        for seq_id, num_tokens in plan.num_tokens.items():
            row = self._rows[seq_id]
            start = row.num_computed
            due = row.advance(num_tokens)
            if row.params.prompt_logprobs is not None and start < row.num_prompt_tokens:
                result.prompt_logprobs[seq_id] = _prompt_logprobs(row, start)
            if not due:
                continue
            token = result.token_ids[seq_id] = row.sample(self.model)
            if row.params.logprobs is not None:
                result.logprobs[seq_id] = _logprobs(token, row.params.logprobs)
        return result


def build_fake_runner(config: EngineConfig, model: FakeModel | None = None) -> FakeRunner:
    """Build a runner; in a core process `hf_overrides` holds the fields of FakeModel."""
    if model is None:
        model = FakeModel(**(config.model.hf_overrides or {}))
    return FakeRunner(
        model,
        num_blocks=config.cache.num_gpu_blocks_override or DEFAULT_NUM_BLOCKS,
        max_model_len=config.model.max_model_len or DEFAULT_MAX_MODEL_LEN,
        max_num_batched_tokens=config.scheduler.token_budget("cpu"),
    )


def _seed(params: SamplingParams) -> int:
    return 0 if params.is_greedy else (params.seed or 0) % 2**64


def _logprobs(token: int, num_top: int) -> TokenLogprobs:
    """Return logprobs that fall by one per rank; the given token ranks first."""
    top = [token, *(byte for byte in range(32, 127) if byte != token)][: max(num_top, 0)]
    ids = [token, *top]
    ranks = [1, *range(1, len(top) + 1)]
    return TokenLogprobs(token_ids=ids, logprobs=[-0.5 * rank for rank in ranks], ranks=ranks)


def _prompt_logprobs(row: FakeSequence, start: int) -> list[TokenLogprobs]:
    end = min(row.num_computed, row.num_prompt_tokens - 1)
    num_top = row.params.prompt_logprobs or 0
    return [_logprobs(row.token_ids[position + 1], num_top) for position in range(start, end)]
