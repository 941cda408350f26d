"""From a configuration to a core process that is ready and a description of its model."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from quire_engine.config import EngineConfig
from quire_engine.frontend.core_client import CoreClient
from quire_engine.model.source import ModelSource, resolve
from quire_engine.server.async_engine import Core
from quire_engine.server.model_card import ModelCard
from quire_engine.server.run import Say

ResultT = TypeVar("ResultT")


async def load_engine(
    config: EngineConfig, say: Say, *, log_level: str = "info", log_format: str = "text"
) -> tuple[Core, ModelCard]:
    """Find the model, start its core and describe it.

    Raises:
        ConfigError: there is no such model, or it cannot run as configured.
        EngineDeadError: the core could not start.
    """
    started_at = time.monotonic()
    source = await in_daemon_thread(lambda: resolve(config.model))
    card = await in_daemon_thread(lambda: model_card(config, source))
    say(f"found {source.name} in {time.monotonic() - started_at:.1f} s")
    core = await CoreClient.start(
        config,
        prefix_model=card.prefix_model,
        eos_token_ids=card.eos_token_ids,
        log_level=logging.getLevelNamesMapping()[log_level.upper()],
        log_format=log_format,
    )
    for phase, took_s in core.ready.load_report.items():
        say(f"{phase} in {took_s:.1f} s")
    return core, card


def model_card(config: EngineConfig, source: ModelSource) -> ModelCard:
    """Describe the model that a source names, with its tokenizer."""
    tokenizer_json = source.load_tokenizer() or ""
    return ModelCard(
        served_names=source.served_names,
        model=config.model.model or source.name,
        prefix_model=source.name,
        vocab_size=source.config["vocab_size"],
        eos_token_ids=tuple(sorted(source.eos_token_ids)),
        max_logprobs=config.model.max_logprobs,
        has_prefix_caching=config.cache.enable_prefix_caching,
        tokenizer_json=tokenizer_json.encode(),
        chat_template=source.chat_template or "",
        generation_config=dict(source.generation_config),
        special_tokens=dict(source.special_tokens),
    )


async def in_daemon_thread(work: Callable[[], ResultT]) -> ResultT:
    """Run blocking work in a thread that does not keep the process from ending.

    A download cannot be cancelled; asyncio's own threads would be waited for at exit.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[ResultT] = loop.create_future()

    def settle(result: ResultT | None, error: BaseException | None) -> None:
        if done.done():  # cancelled meanwhile
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # None only beside an error

    def run() -> None:
        result: ResultT | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # carried over to whoever awaits
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="loader", daemon=True).start()
    return await done
