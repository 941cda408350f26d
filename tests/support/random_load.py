"""Random requests for a core: every feature, arrivals and aborts at any time; answers checked.

load = RandomLoad(core, vocab_size=211, longest_prompt=100, longest_output=40, seed=0)
while not enough:
    load.turn()
load.finish()
"""

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quire_engine.core.engine_core import EngineCore
from quire_engine.core.messages import FinishReason, NewSequence, SequenceOutput, TokenLogprobs
from quire_engine.sampling_params import SamplingParams

NUM_SHARED_PREFIXES = 4
TURNS_BETWEEN_CHECKS = 50


@dataclass(slots=True)
class Live:
    """A sequence that was sent and has not ended."""

    new: NewSequence
    num_tokens_allowed: int
    token_ids: list[int] = field(default_factory=list)


@dataclass(kw_only=True)
class RandomLoad:
    """Sends a core random sequences, aborts some, and checks what comes back."""

    core: EngineCore
    vocab_size: int
    longest_prompt: int
    longest_output: int
    seed: int
    max_num_live: int = 64
    """Sequences in flight that the load aims at; more queue than the core can run."""
    eos_token_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._live: dict[int, Live] = {}
        self._num_sent = 0
        self._turns = 0
        self._prefixes = [
            self._tokens(self.longest_prompt // 2) for _ in range(NUM_SHARED_PREFIXES)
        ]
        self.counts: Counter[str] = Counter()
        """What happened: finish reasons, aborts, tokens, and requests by feature."""

    @property
    def num_live(self) -> int:
        return len(self._live)

    def turn(self) -> None:
        """Send or abort something, perhaps, and run a step."""
        while self.num_live < self.max_num_live and self._random.random() < 0.7:
            self._send()
        if self._live and self._random.random() < 0.05:
            self._abort(self._random.choice(list(self._live)))
        self._step()

    def finish(self) -> None:
        """Run what is left to its end; nothing may stay behind."""
        while self.core.has_work:
            self._step()
        self.core.check()
        assert not self._live, f"{len(self._live)} sequences never ended"
        assert self.core.stats.num_used_blocks == 0, "blocks leaked"

    def _step(self) -> None:
        self._turns += 1
        if not self.core.has_work:
            return
        for output in self.core.step().outputs:
            self._hear(output)
        if self._turns % TURNS_BETWEEN_CHECKS == 0:
            self.core.check()

    def _send(self) -> None:
        new = self._sequence()
        room = self.core.max_model_len - len(new.prompt_token_ids)
        max_tokens = room if new.params.max_tokens is None else new.params.max_tokens
        self._live[new.seq_id] = Live(new, min(room, max_tokens))
        self.core.add(new)
        self.counts["sent"] += 1

    def _abort(self, seq_id: int) -> None:
        self.core.abort([seq_id])
        del self._live[seq_id]
        self.counts["aborted"] += 1

    def _hear(self, output: SequenceOutput) -> None:
        assert output.error is None, output.error
        live = self._live.get(output.seq_id)
        assert live is not None, f"sequence {output.seq_id} was heard of after its end"
        is_first = not live.token_ids
        live.token_ids += output.token_ids
        self.counts["tokens"] += len(output.token_ids)
        check_output(live, output, is_first=is_first, vocab_size=self.vocab_size)
        if output.finish_reason is not None:
            check_end(live, output, self.eos_token_ids)
            del self._live[output.seq_id]
            self.counts[str(output.finish_reason)] += 1

    def _sequence(self) -> NewSequence:
        draw = self._random
        self._num_sent += 1
        features = dict(self._features())
        self.counts.update(f"with {name}" for name in features)
        bad_words = [self._tokens(draw.randint(1, 3)) for _ in range(2)]
        return NewSequence(
            seq_id=self._num_sent,
            prompt_token_ids=self._prompt(),
            params=SamplingParams(**features),
            bad_words_token_ids=bad_words if draw.random() < 0.1 else [],
            priority=draw.choice([0, 0, 0, 1]),
            arrival_s=float(self._num_sent),
            cache_salt=draw.choice(["", "", "", "another tenant"]),
        )

    def _prompt(self) -> list[int]:
        length = self._length(self.longest_prompt)
        if self._random.random() < 0.4:
            prefix = self._random.choice(self._prefixes)[: length - 1]
            return prefix + self._tokens(length - len(prefix))
        return self._tokens(length)

    def _features(self) -> list[tuple[str, Any]]:
        """Draw some of all that a request can ask for."""
        draw = self._random
        drawn: list[tuple[float, str, Callable[[], Any]]] = [
            (1.0, "max_tokens", lambda: self._length(self.longest_output)),
            (1.0, "temperature", lambda: draw.choice([0.0, 0.0, 0.3, 0.8, 1.0, 1.5])),
            (0.3, "top_p", lambda: draw.uniform(0.05, 1.0)),
            (0.3, "top_k", lambda: self._length(self.vocab_size)),
            (0.2, "min_p", lambda: draw.uniform(0.0, 0.5)),
            (0.5, "seed", lambda: draw.randrange(2**63)),
            (0.15, "repetition_penalty", lambda: draw.uniform(0.5, 2.0)),
            (0.15, "frequency_penalty", lambda: draw.uniform(-2.0, 2.0)),
            (0.15, "presence_penalty", lambda: draw.uniform(-2.0, 2.0)),
            (0.1, "logit_bias", lambda: {token: draw.uniform(-9, 9) for token in self._tokens(3)}),
            (0.05, "allowed_token_ids", lambda: sorted(set(self._tokens(20)))),
            (0.2, "stop_token_ids", lambda: self._tokens(max(2, self.vocab_size // 50))),
            (0.3, "ignore_eos", lambda: True),
            (0.2, "logprobs", lambda: draw.randint(0, 20)),
            (0.05, "prompt_logprobs", lambda: draw.randint(0, 5)),
            (0.1, "skip_reading_prefix_cache", lambda: True),
        ]
        features = [(name, value()) for share, name, value in drawn if draw.random() < share]
        if draw.random() < 0.1:
            features.append(("min_tokens", draw.randint(0, dict(features)["max_tokens"])))
        return features

    def _tokens(self, num_tokens: int) -> list[int]:
        return self._random.choices(range(self.vocab_size), k=num_tokens)

    def _length(self, longest: int) -> int:
        """Draw from 1 to `longest`, short ones as often as long ones."""
        return min(longest, int(math.exp(self._random.uniform(0.0, math.log(longest + 1)))))


def check_output(live: Live, output: SequenceOutput, *, is_first: bool, vocab_size: int) -> None:
    """Check that a step brought what the sequence asked for, and nothing else."""
    params = live.new.params
    assert all(0 <= token < vocab_size for token in output.token_ids)
    if params.allowed_token_ids is not None:
        assert set(output.token_ids) <= set(params.allowed_token_ids)
    wants = params.logprobs is not None
    pieces = output.logprobs or []
    assert [piece.token_ids[0] for piece in pieces] == output.token_ids * wants
    for piece in pieces:
        check_logprobs(piece, min(params.logprobs or 0, vocab_size))
    if is_first and params.prompt_logprobs is not None:
        assert output.prompt_logprobs is not None
        told = [piece.token_ids[0] for piece in output.prompt_logprobs]
        assert told == live.new.prompt_token_ids[1:]
        for piece in output.prompt_logprobs:
            check_logprobs(piece, min(params.prompt_logprobs, vocab_size))
    else:
        assert output.prompt_logprobs is None


def check_logprobs(piece: TokenLogprobs, num_top: int) -> None:
    """Check one position: probabilities, and the likeliest tokens in order."""
    assert len(piece.token_ids) == len(piece.logprobs) == len(piece.ranks) == 1 + num_top
    assert all(logprob <= 1e-3 and math.isfinite(logprob) for logprob in piece.logprobs)
    assert piece.ranks[1:] == list(range(1, num_top + 1))
    assert piece.logprobs[1:] == sorted(piece.logprobs[1:], reverse=True)
    if piece.ranks[0] <= num_top:
        assert piece.token_ids[piece.ranks[0]] == piece.token_ids[0]


def check_end(live: Live, output: SequenceOutput, eos_token_ids: frozenset[int]) -> None:
    """Check that a sequence ended for the reason it gives, not earlier and not later."""
    params, tokens = live.new.params, live.token_ids
    ends = set(params.stop_token_ids or ()) | (set() if params.ignore_eos else eos_token_ids)
    assert not ends & set(tokens[params.min_tokens : -1]), "it went on after a stop"
    assert len(tokens) <= live.num_tokens_allowed
    if output.finish_reason is FinishReason.STOP:
        assert tokens[-1] in ends
        assert len(tokens) >= params.min_tokens
    else:
        assert output.finish_reason is FinishReason.LENGTH
        assert len(tokens) == live.num_tokens_allowed
