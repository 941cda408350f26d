"""Circuit breaker: an engine that keeps failing requests gets none for a while.

Only faults of the engine count. A request that was wrong, or refused because a queue is full, says
nothing about the engine's health and must never be recorded here as a failure.
"""

MAX_OPEN_S = 60.0


class Breaker:
    """Opens after `max_failures` in a row; after `open_s` it lets one request try at a time."""

    def __init__(self, *, max_failures: int, open_s: float) -> None:
        self._max_failures = max_failures
        self._open_s = open_s
        self._num_failures = 0
        self._num_openings = 0
        self._open_until = 0.0
        self._is_trying = False

    @property
    def is_open(self) -> bool:
        """Whether it has opened and no request has succeeded since."""
        return self._num_openings > 0

    def allows(self, now: float) -> bool:
        """Return whether a request may be sent."""
        return not self.is_open or (now >= self._open_until and not self._is_trying)

    def sent(self) -> None:
        """A request goes out; while open it is the one trial."""
        self._is_trying = self.is_open

    def succeeded(self) -> None:
        self._num_failures = self._num_openings = 0
        self._is_trying = False

    def failed(self, now: float) -> None:
        self._num_failures += 1
        if self._is_trying or self._num_failures >= self._max_failures:
            duration = min(self._open_s * 2**self._num_openings, MAX_OPEN_S)
            self._open_until = now + duration
            self._num_openings += 1
            self._num_failures = 0
        self._is_trying = False

    def reset(self) -> None:
        """Another engine process took over, which has failed nothing."""
        self.succeeded()

    def ended(self) -> None:
        """A request ended in a way that says nothing: cancelled, wrong or refused."""
        self._is_trying = False
