"""What must move for the process to be well.

Liveness fails for what only a restart can mend: a watch or a queue that is stuck. A server that is
out of reach, or a lost Lease, is no reason to be restarted: waiting mends it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Check = Callable[[], str]
"""Returns "" if all is well, and what is wrong otherwise."""


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of some checks, by name."""

    problems: Mapping[str, str]

    @property
    def is_well(self) -> bool:
        """Whether no check found a problem."""
        return not any(self.problems.values())

    def render(self) -> str:
        """Write one line a check, as the health endpoints of Kubernetes do."""
        lines = [
            f"[-]{name} failed: {problem}" if problem else f"[+]{name} ok"
            for name, problem in self.problems.items()
        ]
        return "\n".join([*lines, "healthz check " + ("passed" if self.is_well else "failed"), ""])


class Health:
    """Named checks for the two probes of a pod."""

    def __init__(self) -> None:
        self._liveness: dict[str, Check] = {}
        self._readiness: dict[str, Check] = {}

    def require_alive(self, name: str, check: Check) -> None:
        """Have the process restarted when this check fails."""
        self._liveness[name] = check

    def require_ready(self, name: str, check: Check) -> None:
        """Take the process for not ready while this check fails."""
        self._readiness[name] = check

    def alive(self) -> Report:
        """Run the liveness checks."""
        return Report({name: check() for name, check in self._liveness.items()})

    def ready(self) -> Report:
        """Run the readiness checks, the liveness checks among them."""
        checks = self._readiness | self._liveness
        return Report({name: check() for name, check in checks.items()})


def limit(what: str, value_s: Callable[[], float], limit_s: float) -> Check:
    """Make a check that fails while a duration is over its limit."""

    def check() -> str:
        value = value_s()
        return f"{what} for {value:.0f} s; at most {limit_s:.0f} s" if value > limit_s else ""

    return check
