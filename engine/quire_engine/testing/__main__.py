"""`python -m quire_engine.testing`: a fake engine as a process, with the flags of a real one."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from quire_engine.config import EngineConfig, option
from quire_engine.flags import Parser, add_options
from quire_engine.frontend.core_client import CoreClient
from quire_engine.server.async_engine import Core
from quire_engine.server.config import ServerConfig
from quire_engine.server.model_card import ModelCard
from quire_engine.server.program import run_program
from quire_engine.testing.model import fake_card
from quire_engine.testing.runner import FakeModel, build_fake_runner
from quire_engine.testing.thread_core import start_thread_core

PROG = "python -m quire_engine.testing"
RUNNER_FACTORY = "quire_engine.testing.runner:build_fake_runner"


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeProcessConfig:
    """How the fake engine is built."""

    core_process: bool = option(False, "run the core in a process of its own, as a real engine")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit status."""
    parser = Parser(PROG, "Serve a fake engine over gRPC: no model, deterministic letters.")
    types = (FakeModel, FakeProcessConfig, EngineConfig, ServerConfig)
    for type_ in types:
        add_options(parser, type_)
    namespace = parser.parse_args(argv)
    model = parser.build(FakeModel, namespace)
    process = parser.build(FakeProcessConfig, namespace)
    config = parser.build(EngineConfig, namespace)
    server = parser.build(ServerConfig, namespace)
    return run_program(parser, lambda: load_fake(config, model, process, server), server)


async def load_fake(
    config: EngineConfig, model: FakeModel, process: FakeProcessConfig, server: ServerConfig
) -> tuple[Core, ModelCard]:
    """Start a fake core, in a thread or in a process."""
    card = fake_card(config, config.model.served_model_name or ("fake",))
    if not process.core_process:
        return start_thread_core(config, build_fake_runner(config, model), card), card
    core = await CoreClient.start(
        replace(config, model=replace(config.model, hf_overrides=asdict(model))),
        prefix_model=card.prefix_model,
        eos_token_ids=card.eos_token_ids,
        runner_factory=RUNNER_FACTORY,
        log_level=logging.getLevelNamesMapping()[server.log_level.upper()],
        log_format=server.log_format,
    )
    return core, card


if __name__ == "__main__":
    sys.exit(main())
