"""Sequences that wait: in order, or held until another has computed what they share."""

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush

from quire_engine.core.sequence import Key, Sequence, State


class WaitingQueue:
    """Waiting sequences, smallest key first. A removed one leaves the heap when it surfaces."""

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, Sequence]] = []
        self._pushes: dict[int, int] = {}  # by sequence id: the push that counts
        self._num_pushes = 0

    def __len__(self) -> int:
        return len(self._pushes)

    def __iter__(self) -> Iterator[Sequence]:
        return (entry[2] for entry in self._heap if self._counts(entry))

    def push(self, sequence: Sequence) -> None:
        sequence.state = State.WAITING
        self._num_pushes += 1
        self._pushes[sequence.seq_id] = self._num_pushes
        heappush(self._heap, (sequence.key, self._num_pushes, sequence))

    def peek(self) -> Sequence:
        """Return the first sequence; the queue must not be empty."""
        while not self._counts(self._heap[0]):
            heappop(self._heap)
        return self._heap[0][2]

    def pop(self) -> Sequence:
        sequence = self.peek()
        heappop(self._heap)
        del self._pushes[sequence.seq_id]
        return sequence

    def remove(self, sequence: Sequence) -> None:
        del self._pushes[sequence.seq_id]
        if len(self._heap) > 2 * len(self._pushes) + 64:  # mostly of removed ones
            self._heap = [entry for entry in self._heap if self._counts(entry)]
            heapify(self._heap)

    def _counts(self, entry: tuple[Key, int, Sequence]) -> bool:
        return self._pushes.get(entry[2].seq_id) == entry[1]


class HeldSequences:
    """Sequences that wait for their leader, a running one, to compute their common prefix.

    Computing it twice would cost time and blocks. Nobody can hang here: each running sequence
    progresses with every step, the scheduler says so after each, and a leader that leaves for
    whatever reason lets go of all. A sequence is held at most once.
    """

    def __init__(self) -> None:
        self._by_leader: dict[int, list[tuple[int, Sequence]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_leader.values()))

    def __bool__(self) -> bool:
        return bool(self._by_leader)

    def hold(self, sequence: Sequence, leader: Sequence, num_blocks: int) -> None:
        """Hold a sequence until its leader has `num_blocks` computed blocks."""
        sequence.state = State.HELD
        sequence.was_held = True
        self._by_leader.setdefault(leader.seq_id, []).append((num_blocks, sequence))

    def let_go(self, leader: Sequence, num_blocks: int | None = None) -> list[Sequence]:
        """Return those that need wait no longer; all when the leader leaves (None)."""
        held = self._by_leader.pop(leader.seq_id, None)
        if held is None:
            return []
        staying = [] if num_blocks is None else [entry for entry in held if entry[0] > num_blocks]
        if staying:
            self._by_leader[leader.seq_id] = staying
        return [sequence for needed, sequence in held if num_blocks is None or needed <= num_blocks]

    def remove(self, sequence: Sequence) -> None:
        for leader_id, held in list(self._by_leader.items()):
            kept = [entry for entry in held if entry[1] is not sequence]
            if kept:
                self._by_leader[leader_id] = kept
            else:
                del self._by_leader[leader_id]

    def leaders(self) -> dict[int, int]:
        """Return, by leader's id, the fewest computed blocks that would let someone go."""
        return {
            leader: min(needed for needed, _ in held) for leader, held in self._by_leader.items()
        }


class SequenceQueue:
    """All sequences that do not run, and the prompt tokens that they are expected to compute."""

    def __init__(self) -> None:
        self._waiting, self._held = WaitingQueue(), HeldSequences()
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._held)

    @property
    def num_held(self) -> int:
        return len(self._held)

    @property
    def has_first(self) -> bool:
        """Whether one waits that is not held."""
        return len(self._waiting) > 0

    def push(self, sequence: Sequence, *, num_expected_tokens: int) -> None:
        sequence.num_expected_tokens = num_expected_tokens
        self.num_tokens += num_expected_tokens
        self._waiting.push(sequence)

    def first(self) -> Sequence:
        """Return the first sequence that is not held; there must be one."""
        return self._waiting.peek()

    def pop(self) -> None:
        """Take the first sequence out."""
        self.num_tokens -= self._waiting.pop().num_expected_tokens

    def remove(self, sequence: Sequence) -> None:
        if sequence.state is State.HELD:
            self._held.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self.num_tokens -= sequence.num_expected_tokens

    def hold_first(self, leader: Sequence, num_blocks: int) -> None:
        """Hold the first sequence until its leader has `num_blocks` computed blocks."""
        self._held.hold(self._waiting.pop(), leader, num_blocks)

    def let_go(self, leader: Sequence, num_blocks: int | None = None) -> None:
        """Let those wait in order that need their leader no longer; all when it leaves (None)."""
        if self._held:
            for sequence in self._held.let_go(leader, num_blocks):
                self._waiting.push(sequence)

    def check(self, sequences: Mapping[int, Sequence]) -> None:
        """Raise AssertionError unless this queue has what does not run of all sequences."""
        others = {i: one for i, one in sequences.items() if one.state is not State.RUNNING}
        waiting = {i for i, one in others.items() if one.state is State.WAITING}
        assert waiting == {one.seq_id for one in self._waiting}, "a waiting one got lost"
        assert len(others) == len(self), "a held one got lost"
        for leader, num_blocks in self._held.leaders().items():
            is_running = leader in sequences and leader not in others
            assert is_running, f"sequence {leader} is waited for and does not run"
            computed = sequences[leader].num_stored_blocks
            assert computed < num_blocks, f"sequence {leader} is waited for without need"
        expected = sum(one.num_expected_tokens for one in others.values())
        assert expected == self.num_tokens, "waiting tokens are miscounted"
