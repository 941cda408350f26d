"""How a process takes part in a group while it builds its runner."""

from typing import Any, Protocol

from quire_engine.model.share import WHOLE, Share


class Rank(Protocol):
    """This process among those that share a model."""

    @property
    def share(self) -> Share:
        """What of the model it has."""
        ...

    def store(self) -> Any:
        """Return the `torch.distributed.Store` at which the ranks meet."""
        ...

    def reach(self, stage: str) -> None:
        """Tell that it got so far; the first rank waits until all have.

        What cannot fail together must not be begun before all are ready for it: a rank that waits
        in a collective for one that has failed waits for ever.
        """
        ...


class OnlyRank:
    """The rank of a model that nobody shares."""

    share = WHOLE

    def store(self) -> Any:
        raise AssertionError("a rank alone meets nobody")

    def reach(self, stage: str) -> None:
        return


ONLY_RANK = OnlyRank()
