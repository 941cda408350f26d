"""How the prefills of one step share the tokens that decodes leave.

A prompt is long while what remains of it exceeds one whole step (or the configured threshold).

*   Everyone gets at least one token, so everyone progresses.
*   Short ones are served in order, as many as fit: each is done with in a step or two.
*   Long ones together are sure of half, so that a stream of short ones cannot starve them, and
    leave the other half, so that they cannot delay short ones for the whole of their prefill.
*   Among long ones the first takes half of what they have, the next half of the rest, and so on:
    the first is not slowed much by those behind it, and none waits for the whole of another.
*   What nobody claimed goes to whoever can use it: no token of the budget is wasted.
"""

from collections.abc import Sequence


class PrefillDemand:
    """What the prefills of a step want, and whether another one would get something."""

    def __init__(self, num_tokens: int, *, long_above: int, max_chunk: int) -> None:
        self._num_tokens = num_tokens
        self._long_above = long_above
        self._max_chunk = max_chunk
        self._num_short_tokens = 0
        self._has_long = False

    @property
    def has_room(self) -> bool:
        """Whether one more prefill would compute more than its one sure token."""
        reserved = self._num_tokens // 2 if self._has_long else 0
        return self._num_short_tokens < self._num_tokens - reserved

    def add(self, num_uncomputed: int) -> None:
        if num_uncomputed > self._long_above:
            self._has_long = True
        else:
            self._num_short_tokens += num_uncomputed

    def divide(self, uncomputed: Sequence[int]) -> list[int]:
        """Return the tokens of each prefill, in order of precedence."""
        wants = [min(num_tokens, self._max_chunk) for num_tokens in uncomputed]
        is_long = [num_tokens > self._long_above for num_tokens in uncomputed]
        return divide(wants, is_long, self._num_tokens)


def divide(wants: Sequence[int], is_long: Sequence[bool], num_tokens: int) -> list[int]:
    """Return how many tokens each prefill gets, given what each wants, in order of precedence.

    Each gets at least 1 and at most what it wants (at least 1); the sum is all of `num_tokens` or
    all that is wanted. There must be a token for each.
    """
    assert num_tokens >= len(wants), f"{len(wants)} prefills share {num_tokens} tokens"
    grants = [1] * len(wants)
    left = num_tokens - len(wants)
    longs = [i for i, long in enumerate(is_long) if long]
    reserved = min(left // 2, sum(wants[i] - 1 for i in longs))
    shorts = [i for i, long in enumerate(is_long) if not long]
    left = reserved + _fill(grants, wants, shorts, left - reserved)
    for position, i in enumerate(longs):
        is_last = position == len(longs) - 1
        extra = min(wants[i] - grants[i], left if is_last else (left + 1) // 2)
        grants[i] += extra
        left -= extra
    _fill(grants, wants, longs, left)
    return grants


def _fill(grants: list[int], wants: Sequence[int], order: list[int], left: int) -> int:
    """Give each in order all it still wants while tokens are left; return what remains."""
    for i in order:
        extra = min(wants[i] - grants[i], left)
        grants[i] += extra
        left -= extra
    return left
