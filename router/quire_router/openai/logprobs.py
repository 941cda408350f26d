"""Log-probabilities in OpenAI's two styles, and prompt logprobs in vLLM's.

A position holds the chosen (or prompt) token first, then the most likely ones; the chosen one may
occur twice.
"""

import codecs
from collections.abc import Sequence
from typing import Any, NamedTuple

from quire_engine.rpc.engine_pb2 import PositionLogprobs

FLOOR = -9999.0
"""Stands for minus infinity, which JSON does not have."""


class Candidate(NamedTuple):
    """One token at one position."""

    token_id: int
    logprob: float
    rank: int
    raw: bytes

    @classmethod
    def all_of(cls, position: PositionLogprobs) -> "list[Candidate]":
        """Return each token of a position once, the chosen one first."""
        found: dict[int, Candidate] = {}
        raws = list(position.tokens) or [b""] * len(position.token_ids)
        for token_id, logprob, rank, raw in zip(
            position.token_ids, position.logprobs, position.ranks, raws, strict=True
        ):
            found.setdefault(token_id, cls(token_id, max(logprob, FLOOR), rank, raw))
        return list(found.values())

    def text(self, *, as_id: bool) -> str:
        """Return the token for display; bytes that are no character alone show as U+FFFD."""
        return f"token_id:{self.token_id}" if as_id else self.raw.decode(errors="replace")


def most_likely(candidates: list[Candidate], num_top: int) -> list[Candidate]:
    """Return the `num_top` most likely candidates in order; -1 returns all."""
    ordered = sorted(candidates, key=lambda candidate: candidate.rank)
    return ordered if num_top == -1 else ordered[:num_top]


def chat_logprobs(
    positions: Sequence[PositionLogprobs], num_top: int, *, as_ids: bool
) -> dict[str, Any]:
    """Return `choices[].logprobs` of a chat completion."""
    content = []
    for position in positions:
        candidates = Candidate.all_of(position)
        top = [_chat_entry(item, as_ids=as_ids) for item in most_likely(candidates, num_top)]
        content.append({**_chat_entry(candidates[0], as_ids=as_ids), "top_logprobs": top})
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """`choices[].logprobs` of one text completion, piece by piece.

    Tokens join to the text: a character split over several tokens belongs to the last of them.
    """

    def __init__(self, num_top: int, *, as_ids: bool) -> None:
        self._num_top = num_top
        self._as_ids = as_ids
        self._num_chars = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def render(
        self, positions: Sequence[PositionLogprobs], *, first_token: str | None = None
    ) -> dict[str, Any]:
        """Return the logprobs of the next positions.

        `first_token` is that of an echoed prompt, which nothing predicts.
        """
        rendered: dict[str, list[Any]] = {
            "text_offset": [],
            "token_logprobs": [],
            "tokens": [],
            "top_logprobs": [],
        }
        if first_token is not None:
            self._append(rendered, first_token, None, None, num_chars=len(first_token))
        for position in positions:
            candidates = Candidate.all_of(position)
            text = self._decoder.decode(candidates[0].raw)
            shown = candidates[0].text(as_id=True) if self._as_ids else text
            top = self._top(candidates)
            self._append(rendered, shown, candidates[0].logprob, top, num_chars=len(text))
        return rendered

    def _append(
        self,
        rendered: dict[str, list[Any]],
        token: str,
        logprob: float | None,
        top: dict[str, float] | None,
        *,
        num_chars: int,
    ) -> None:
        rendered["text_offset"].append(self._num_chars)
        rendered["token_logprobs"].append(logprob)
        rendered["tokens"].append(token)
        rendered["top_logprobs"].append(top)
        self._num_chars += num_chars

    def _top(self, candidates: list[Candidate]) -> dict[str, float]:
        """Return the most likely tokens and the chosen one; of equal texts, the likelier."""
        top: dict[str, float] = {}
        for item in [*most_likely(candidates, self._num_top), candidates[0]]:
            top.setdefault(item.text(as_id=self._as_ids), item.logprob)
        return top


def prompt_logprobs(
    positions: Sequence[PositionLogprobs], *, as_ids: bool
) -> list[dict[str, Any] | None]:
    """Return vLLM's `prompt_logprobs`: nothing for the first token, then one object each."""
    return [
        None,
        *(
            {str(item.token_id): _prompt_entry(item, as_ids=as_ids) for item in candidates}
            for candidates in map(Candidate.all_of, positions)
        ),
    ]


def _chat_entry(item: Candidate, *, as_ids: bool) -> dict[str, Any]:
    return {"token": item.text(as_id=as_ids), "logprob": item.logprob, "bytes": list(item.raw)}


def _prompt_entry(item: Candidate, *, as_ids: bool) -> dict[str, Any]:
    text = item.text(as_id=as_ids)
    return {"logprob": item.logprob, "rank": item.rank, "decoded_token": text}
