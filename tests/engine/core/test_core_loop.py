"""The loop of the core process, over real sockets, in this process."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from core_support import new_core, new_sequence, tokens
from quire_engine.config import EngineConfig
from quire_engine.core.messages import StepOutputs
from quire_engine.core.process import CoreLoop, Link
from quire_engine.core.wire import AddSequences, Codec, CoreSpec, Heartbeat


class Frontend:
    """The other end of a Link."""

    def __init__(self, folder: Path) -> None:
        self.context = zmq.Context()
        self.codec = Codec()
        self.commands = self.context.socket(zmq.PUSH)
        self.events = self.context.socket(zmq.PULL)
        self.spec = CoreSpec(
            config=EngineConfig(),
            prefix_model="",
            eos_token_ids=[],
            runner_factory="",
            commands_address=f"ipc://{folder}/commands",
            events_address=f"ipc://{folder}/events",
            log_level=logging.INFO,
        )
        self.commands.bind(self.spec.commands_address)
        self.events.bind(self.spec.events_address)

    def send(self, message: object) -> None:
        self.commands.send_multipart(self.codec.pack(message))

    def receive(self) -> object:
        assert self.events.poll(5000), "the core says nothing"
        return self.codec.unpack(self.events.recv_multipart())

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[Frontend]:
    end = Frontend(tmp_path)
    yield end
    end.close()


def test_an_idle_core_beats_steps_when_told_and_checks_itself_afterwards(
    frontend: Frontend, caplog: pytest.LogCaptureFixture
) -> None:
    core = new_core()
    with Link(frontend.spec) as link:
        loop = CoreLoop(core, link)
        loop.turn()
        assert frontend.receive() == Heartbeat(num_commands=0)
        frontend.send(AddSequences(sequences=[new_sequence(0, tokens(20), max_tokens=2)]))
        loop.turn()
        loop.turn()
        first, second = frontend.receive(), frontend.receive()
        assert isinstance(first, StepOutputs)
        assert isinstance(second, StepOutputs)
        assert second.stats.num_running == 0
        core._cache.pool.allocate(1)  # a leak
        for _ in range(2):
            loop.turn()
            assert frontend.receive() == Heartbeat(num_commands=1)
    assert loop.num_failed_checks == 1
    assert "ref_count 1, in 0 tables" in caplog.text
