"""What the HTTP side asks of the pool side: a dispatcher that runs generations on replicas.

Everything the HTTP side knows about replicas is here. All of it belongs to one event loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from quire_engine.rpc import engine_pb2
from quire_router.replica_reports import ReplicaReport, RequestReport
from quire_router.traces import NO_GENERATION, GenerationTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """What tokenizing and prompt rendering need, as an engine sent it (`GetTokenizer`)."""

    sha256: str
    """Of `data`; equal hashes are equal tokenizers. Empty when the engine has no tokenizer."""
    data: bytes
    """tokenizer.json."""
    chat_template: str
    """Empty: the model has none."""
    generation_config: str
    """JSON object of sampling defaults, which the engine applies."""
    special_tokens: str
    """JSON object: bos_token, eos_token and the like."""


class Generation(Protocol):
    """One request on its way through a replica."""

    @property
    def replica(self) -> str:
        """Name of the replica that runs it; empty until one was chosen."""
        ...

    async def next(self) -> engine_pb2.GenerateResponse:
        """Return what is new; responses that were not collected in time come merged into one.

        The last response has `usage` set; nothing may be awaited after it.

        Raises:
            ApiError: the generation has failed; nothing follows.
        """
        ...

    def cancel(self) -> None:
        """Abort wherever it is: queued here, or on a replica. Harmless when it has ended."""
        ...


class Reports(Protocol):
    """What people and tools may see of replicas and requests."""

    @property
    def revision(self) -> int:
        """Grows whenever the report of a request changes."""
        ...

    @property
    def num_parked(self) -> int:
        """Requests that wait because no replica can take them."""
        ...

    def replicas(self, *, with_history: bool = False) -> Sequence[ReplicaReport]:
        """Return what is known of every replica."""
        ...

    def requests(self, since: int = 0) -> Sequence[RequestReport]:
        """Return the last requests that are new or have changed since a revision, oldest first."""
        ...


class Dispatcher(Protocol):
    """Chooses replicas and runs generations on them."""

    async def start(self) -> None:
        """Begin to look for replicas. Returns at once, whether or not there are any."""
        ...

    async def close(self) -> None:
        """Abort what is in flight and close every connection."""
        ...

    @property
    def is_synced(self) -> bool:
        """Whether it is known which replicas there are, be it none."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a replica can take requests now."""
        ...

    @property
    def reports(self) -> Reports:
        """What there is to see of the replicas and of the last requests."""
        ...

    def models(self) -> Sequence[engine_pb2.ModelInfo]:
        """Return the models of the replicas that are ready now; one each."""
        ...

    def served(self) -> engine_pb2.ModelInfo | None:
        """Return the model served, also while no replica is ready; None until one has been."""
        ...

    def tokenizer(self) -> TokenizerFiles:
        """Return the tokenizer of `served()`.

        Raises:
            NoReplicaError: no replica has been ready yet.
        """
        ...

    def generate(
        self,
        request: engine_pb2.GenerateRequest,
        *,
        token_ids: Sequence[int],
        trace: GenerationTrace = NO_GENERATION,
    ) -> Generation:
        """Start a generation; choosing, waiting and failing happen in `Generation.next`.

        `token_ids` are the prompt; `request.prompt_token_ids` is left to the dispatcher to fill.
        """
        ...
