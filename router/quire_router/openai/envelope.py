"""What every piece of a response has in common: id, time, model."""

from dataclasses import dataclass
from typing import Any

import orjson

from quire_router.openai.results import Usage

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Identity of one response; the same in all its chunks."""

    id: str
    created: int
    """Unix time, in seconds."""
    model: str
    """As the client named it."""
    system_fingerprint: str

    def body(self, object_: str) -> dict[str, Any]:
        """Return the fields that a response begins with."""
        return {
            "id": self.id,
            "object": object_,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }

    def chunk_head(self, object_: str) -> bytes:
        """Return a server-sent event up to the index of its only choice."""
        fields = orjson.dumps(self.body(object_))
        return b"data: " + fields[:-1] + b',"choices":[{"index":'


def chunk_tail(usage: Usage | None = None, *, has_usage: bool = True) -> bytes:
    """Return the end of a chunk; without `usage`, streams that report usage later say null."""
    if not has_usage:
        return b"}\n\n"
    rendered = b"null" if usage is None else orjson.dumps(usage.render())
    return b',"usage":' + rendered + b"}\n\n"
