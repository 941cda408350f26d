"""How a frontend process and its core process talk: two frames, a kind and a msgpack body.

Commands go to the core, events come from it, each over a ZeroMQ socket of its own.
"""

import signal
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from quire_engine.config import EngineConfig
from quire_engine.core.messages import CoreReady, NewSequence, StepOutputs

HEARTBEAT_S = 0.5
"""An idle core speaks at least this often; a busy one speaks after every step."""

STOP_SIGNAL = signal.SIGUSR1
"""Tells the core to end. Not SIGTERM, which reaches whole groups and would cut a drain short."""


@dataclass(slots=True, kw_only=True)
class CoreSpec:
    """All that a core process needs to build itself."""

    config: EngineConfig
    prefix_model: str
    eos_token_ids: list[int]
    runner_factory: str
    """"module:function", called as `function(config)`; returns a ModelRunner."""
    commands_address: str
    events_address: str
    log_level: int
    log_format: str = "text"


@dataclass(slots=True, kw_only=True)
class StartFailure:
    """Why a core process could not start."""

    message: str
    is_config: bool
    """The configuration is at fault: ConfigError, not a crash."""


@dataclass(slots=True, kw_only=True)
class Heartbeat:
    """A core with nothing to do is alive."""

    num_commands: int = 0
    """Commands obeyed since start: a frontend that sent more knows that this was said before."""


@dataclass(slots=True, kw_only=True)
class AddSequences:
    """Begin to generate these."""

    sequences: list[NewSequence]


@dataclass(slots=True, kw_only=True)
class AbortSequences:
    """Stop generating these and free their blocks; unknown ids are ignored."""

    seq_ids: list[int] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class ResetPrefixCache:
    """Forget every cached prefix that no live sequence uses; answered by PrefixCacheReset."""

    ticket: int


@dataclass(slots=True, kw_only=True)
class PrefixCacheReset:
    """The answer to the ResetPrefixCache with this ticket."""

    ticket: int


class Kind(Enum):
    """The first frame of a message, and the type of its second."""

    ADD = b"a"
    ABORT = b"x"
    RESET = b"c"
    READY = b"r"
    FAILED = b"f"
    STEP = b"s"
    HEARTBEAT = b"h"
    RESET_DONE = b"d"


_TYPES: dict[Kind, type] = {
    Kind.ADD: AddSequences,
    Kind.ABORT: AbortSequences,
    Kind.RESET: ResetPrefixCache,
    Kind.READY: CoreReady,
    Kind.FAILED: StartFailure,
    Kind.STEP: StepOutputs,
    Kind.HEARTBEAT: Heartbeat,
    Kind.RESET_DONE: PrefixCacheReset,
}


class Codec:
    """Packs messages into frames and back."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._kinds = {type_: kind.value for kind, type_ in _TYPES.items()}
        self._decoders: dict[bytes, msgspec.msgpack.Decoder[Any]] = {
            kind.value: msgspec.msgpack.Decoder(type_) for kind, type_ in _TYPES.items()
        }

    def pack(self, message: Any) -> list[bytes]:
        return [self._kinds[type(message)], self._encoder.encode(message)]

    def unpack(self, frames: list[bytes]) -> Any:
        kind, body = frames
        return self._decoders[kind].decode(body)
