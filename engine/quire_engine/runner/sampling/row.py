"""What the sampler remembers of one sequence between steps."""

from collections import deque
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from quire_engine.runner.sampling.noise import mix_seed
from quire_engine.sampling_params import SamplingParams

_MAX_BIAS = 1e5

IdArray = npt.NDArray[np.int64]


class TokenCounts:
    """How often each token occurs in the output, for every token of prompt and output.

    Arrays grow by doubling, so a step costs O(1) and reading them costs no copy.
    """

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        ids = sorted(set(prompt_token_ids))
        self._ids = np.array(ids, dtype=np.int64)
        self._counts = np.zeros(len(ids), dtype=np.float32)
        self._slots = {token_id: slot for slot, token_id in enumerate(ids)}

    def add(self, token_id: int) -> None:
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == len(self._ids):
            self._grow()
        self._ids[slot] = token_id
        self._counts[slot] += 1.0

    @property
    def ids(self) -> IdArray:
        """Distinct tokens of prompt and output."""
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        """Occurrences in the output, parallel to `ids`; 0 for tokens of the prompt alone."""
        return self._counts[: len(self._slots)]

    def _grow(self) -> None:
        spare = max(64, len(self._ids))
        self._ids = np.concatenate([self._ids, np.zeros(spare, dtype=np.int64)])
        self._counts = np.concatenate([self._counts, np.zeros(spare, dtype=np.float32)])


class SamplingRow:
    """One sequence's parameters and the state that they need, advanced token by token.

    Ids outside of [0, vocab_size) can never be sampled and are ignored; refusing them is the
    frontend's task. `stop_ids` are the tokens that `min_tokens` holds back.
    """

    def __init__(
        self,
        *,
        seq_id: int,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        vocab_size: int,
        seed: int,
        stop_ids: Collection[int] = (),
        bad_words_token_ids: Sequence[Sequence[int]] = (),
    ) -> None:
        def inside(token_ids: Collection[int]) -> IdArray:
            kept = sorted({token_id for token_id in token_ids if 0 <= token_id < vocab_size})
            return np.array(kept, dtype=np.int64)

        self.seq_id = seq_id
        self.params = params
        self.seed = mix_seed(seed, seq_id) if params.seed is None else params.seed
        self.num_output_tokens = 0
        self.allowed_ids = inside(params.allowed_token_ids or ())
        self.stop_ids = inside(stop_ids)
        self.bias_ids = inside((params.logit_bias or {}).keys())
        bias = params.logit_bias or {}
        # Clipped, so that no request can make a logit infinite.
        biases = np.array([bias[int(i)] for i in self.bias_ids], dtype=np.float32)
        self.bias = np.nan_to_num(biases).clip(-_MAX_BIAS, _MAX_BIAS)
        words = [word for word in bad_words_token_ids if word and 0 <= word[-1] < vocab_size]
        # Bad words of one token, and of several.
        self.banned = inside([word[0] for word in words if len(word) == 1])
        self.phrases = [tuple(word) for word in words if len(word) > 1]
        self._tail: deque[int] = deque(maxlen=max(map(len, self.phrases), default=1) - 1)
        self.counts = TokenCounts(inside(prompt_token_ids).tolist()) if _penalised(params) else None
        self._is_edited = bool(
            len(self.allowed_ids) or len(self.bias_ids) or words or self.counts is not None
        )

    @property
    def is_greedy(self) -> bool:
        return self.params.is_greedy

    @property
    def holds_back_stops(self) -> bool:
        """Whether `min_tokens` is still to be reached."""
        return self.num_output_tokens < self.params.min_tokens and len(self.stop_ids) > 0

    @property
    def is_edited(self) -> bool:
        """Whether this step changes any logit before the temperature."""
        return self._is_edited or self.holds_back_stops

    def append(self, token_id: int) -> None:
        """Take note of the next token of the output."""
        self.num_output_tokens += 1
        if self.phrases:
            self._tail.append(token_id)
        if self.counts is not None:
            self.counts.add(token_id)

    def banned_ids(self) -> IdArray:
        """Return the tokens that would complete a bad word."""
        if not self.phrases:
            return self.banned
        tail = tuple(self._tail)
        last = [w[-1] for w in self.phrases if tail[len(tail) - len(w) + 1 :] == w[:-1]]
        return np.concatenate([self.banned, np.array(last, dtype=np.int64)])


def _penalised(params: SamplingParams) -> bool:
    return bool(
        params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
    )
