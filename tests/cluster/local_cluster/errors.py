"""Errors of the local cluster.

ClusterError
    ToolsMissingError    a binary or a right that the cluster needs is not there
    CommandError         a program failed; carries what it printed
"""

import shlex
from collections.abc import Sequence


class ClusterError(Exception):
    """The cluster cannot do what was asked; the message says why and what to do next."""


class ToolsMissingError(ClusterError):
    """A binary or a right that the cluster needs is not there."""


class CommandError(ClusterError):
    """A program failed."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"{shlex.join(command)} ended with status {status}: {output.strip()}")
        self.status = status
        self.output = output
