"""A sequence while the core knows it: its tokens, its blocks, and when it ends."""

from enum import Enum, auto

from quire_engine.core.block_content import ContentChain
from quire_engine.core.messages import FinishReason, NewSequence, TokenLogprobs
from quire_engine.runner.plan import AdmittedSequence

Key = tuple[int, float, int]
"""(priority, arrival, id): the smaller is served first and preempted last."""


class State(Enum):
    """Where a sequence is."""

    WAITING = auto()
    HELD = auto()
    """Waiting for a running sequence to compute a prefix that both have."""
    RUNNING = auto()
    ENDED = auto()


class Sequence:
    """Tokens [0, num_computed_tokens) have keys and values in the cache.

    Those up to num_scheduled_tokens will have, once the steps in flight are over. While tokens
    remain to be scheduled the sequence prefills; with exactly one it decodes. A token that a step
    in flight will sample counts as known: its position is, and only the runner needs its value.
    """

    __slots__ = (
        "_eos_token_ids",
        "_min_num_tokens",
        "_stop_token_ids",
        "block_ids",
        "chain",
        "key",
        "max_num_tokens",
        "new",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_expected_tokens",
        "num_lost_tokens",
        "num_pending_samples",
        "num_preemptions",
        "num_prompt_tokens",
        "num_scheduled_tokens",
        "num_stored_blocks",
        "prompt_logprobs",
        "reads_cache",
        "scheduled_s",
        "seq_id",
        "state",
        "token_ids",
        "was_held",
    )

    def __init__(
        self,
        new: NewSequence,
        *,
        key: Key,
        chain: ContentChain,
        max_model_len: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        params = new.params
        self.new = new
        self.seq_id = new.seq_id
        self.key = key
        self.chain = chain
        self.state = State.WAITING
        self.token_ids = list(new.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_scheduled_tokens = 0
        self.num_pending_samples = 0
        """Tokens that steps in flight will append."""
        self.block_ids: list[int] = []
        self.num_stored_blocks = 0
        """First blocks whose content was offered to the cache."""
        self.num_cached_tokens: int | None = None
        """Prompt tokens found in the cache when first admitted."""
        self.num_expected_tokens = 0
        """While waiting: tokens that it will probably have to compute."""
        self.num_preemptions = 0
        self.num_lost_tokens = 0
        """Tokens that were computed when it was last preempted."""
        self.scheduled_s: float | None = None
        self.was_held = False
        self.reads_cache = not (
            params.skip_reading_prefix_cache or params.prompt_logprobs is not None
        )
        self.prompt_logprobs: list[TokenLogprobs] = []
        self._eos_token_ids = frozenset() if params.ignore_eos else eos_token_ids
        self._stop_token_ids = frozenset(params.stop_token_ids or ())
        self._min_num_tokens = self.num_prompt_tokens + params.min_tokens
        max_tokens = max_model_len if params.max_tokens is None else params.max_tokens
        self.max_num_tokens = min(max_model_len, self.num_prompt_tokens + max_tokens)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_unscheduled_tokens(self) -> int:
        return len(self.token_ids) + self.num_pending_samples - self.num_scheduled_tokens

    @property
    def will_end(self) -> bool:
        """Whether a token that is being sampled is the last that may be."""
        return len(self.token_ids) + self.num_pending_samples >= self.max_num_tokens

    def schedule(self, num_tokens: int) -> None:
        """Note that a step computes the next `num_tokens`."""
        self.num_scheduled_tokens += num_tokens
        if not self.num_unscheduled_tokens:
            self.num_pending_samples += 1

    @property
    def is_first_token(self) -> bool:
        """Whether the last token is the first one generated."""
        return len(self.token_ids) == self.num_prompt_tokens + 1

    def admission(self) -> AdmittedSequence:
        """Return what a runner must know to go on; lists are copies, which it may change."""
        return AdmittedSequence(
            seq_id=self.seq_id,
            token_ids=self.token_ids.copy(),
            num_prompt_tokens=self.num_prompt_tokens,
            block_ids=self.block_ids.copy(),
            num_computed_tokens=self.num_computed_tokens,
            params=self.new.params,
            bad_words_token_ids=self.new.bad_words_token_ids,
        )

    def ending(self) -> tuple[FinishReason | None, int | None]:
        """Return why the last token ends the sequence, and the stop token id if that is why."""
        token, num_tokens = self.token_ids[-1], len(self.token_ids)
        if num_tokens >= self._min_num_tokens:
            if token in self._stop_token_ids:
                return FinishReason.STOP, token
            if token in self._eos_token_ids:
                return FinishReason.STOP, None
        if num_tokens >= self.max_num_tokens:
            return FinishReason.LENGTH, None
        return None, None
