"""What a worker tells the others to show: its replicas' states and its last requests.

Published a few times a second and whenever a replica's state changes. Two buffers take turns, so
that a worker that is killed while it writes leaves its last view whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import xxhash

from quire_engine.rpc import engine_pb2 as pb
from quire_router.replica_reports import RequestReport
from quire_router.replica_view import ReplicaFacts
from quire_router.workers.memory import VIEW_BYTES, Slot, Status
from quire_router.workers.sources import SourceFacts

HEAD_BYTES = 16
MAX_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """All of it."""

    replicas: list[ReplicaFacts] = field(default_factory=list)
    requests: list[RequestReport] = field(default_factory=list)
    sources: list[SourceFacts] = field(default_factory=list)
    num_parked: int = 0


class Views:
    """The views of one worker, for itself and for others."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._encode = msgspec.msgpack.Encoder(enc_hook=_encode_load).encode
        decoder = msgspec.msgpack.Decoder(WorkerView, dec_hook=_decode_load)
        self._decode: Callable[[bytes], WorkerView] = decoder.decode
        self._number = 0
        self._last = WorkerView()

    def publish(self, view: WorkerView) -> None:
        """Let others see it, without its requests if it is too large. For the slot's own worker."""
        data = self._encode(view)
        if len(data) > VIEW_BYTES - HEAD_BYTES:
            data = self._encode(replace(view, requests=[]))
        if len(data) > VIEW_BYTES - HEAD_BYTES:
            return
        number = self._slot.words[Status.NUM_VIEWS] + 1
        buffer = self._slot.views[number % 2]
        head = len(data).to_bytes(8, "little") + xxhash.xxh3_64_digest(data)
        buffer[: HEAD_BYTES + len(data)] = head + data
        self._slot.words[Status.NUM_VIEWS] = number

    def last(self) -> WorkerView:
        """Return what was published last; the view before when it changes all the time."""
        for _ in range(MAX_TRIES):
            number = self._slot.words[Status.NUM_VIEWS]
            if number == self._number:
                break
            buffer = self._slot.views[number % 2]
            size = min(int.from_bytes(buffer[:8], "little"), VIEW_BYTES - HEAD_BYTES)
            checksum, data = bytes(buffer[8:HEAD_BYTES]), bytes(buffer[HEAD_BYTES:][:size])
            if xxhash.xxh3_64_digest(data) == checksum:
                self._number, self._last = number, self._decode(data)
                break
        return self._last


def _encode_load(load: pb.Load) -> bytes:
    return load.SerializeToString()


def _decode_load(_: type, data: Any) -> pb.Load:
    return pb.Load.FromString(data)
