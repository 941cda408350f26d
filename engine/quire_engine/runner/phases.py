"""The phases of loading, timed."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class Phases:
    """Times the phases of loading, and says so in the log."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Time what runs inside, under a name."""
        started_at = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started_at
        logger.info("loading phase=%s duration_s=%.3f", name, self.seconds[name])
