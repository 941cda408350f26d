"""Whether this router still wants new requests; one object, shared by all who have to know."""


class Lifecycle:
    """Starts serving, stops once."""

    def __init__(self) -> None:
        self.is_stopping = False
        """It will end soon: load balancers should send nothing more, clients should reconnect."""

    def stop(self) -> None:
        """Say so from here on."""
        self.is_stopping = True
