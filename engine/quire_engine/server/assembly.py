"""Puts an engine together from a core that is ready and what is known of its model."""

import secrets

from quire_engine.core.messages import CoreReady
from quire_engine.frontend.processor import Processor
from quire_engine.frontend.tokenizer import Tokenizer
from quire_engine.frontend.validation import ModelLimits
from quire_engine.rpc.tracing import Tracing
from quire_engine.server.async_engine import AsyncEngine, Core
from quire_engine.server.config import ServerConfig
from quire_engine.server.kv_mirror import KvMirror
from quire_engine.server.metrics import EngineDescription, EngineMetrics, SloTargets
from quire_engine.server.model_card import ModelCard
from quire_engine.server.request_tracer import RequestTracer
from quire_engine.server.service import Serving


def assemble(
    core: Core,
    card: ModelCard,
    config: ServerConfig,
    *,
    metrics_type: type[EngineMetrics] = EngineMetrics,
    tracing: Tracing | None = None,
) -> Serving:
    """Return what a server serves, with an epoch of its own; `tracing` is closed elsewhere.

    Raises:
        ConfigError: the tokenizer cannot be used.
    """
    ready = core.ready
    mirror = KvMirror(secrets.randbits(63) + 1)
    info = card.info(ready, epoch=mirror.epoch)
    metrics = metrics_type(
        card.served_names[0],
        _description(ready, card, info.version),
        targets=SloTargets.from_ms(
            first_token_ms=config.slo_ttft_ms, per_token_ms=config.slo_itl_ms
        ),
        compat=config.metrics_compat,
    )
    tracer = None if tracing is None else RequestTracer(tracing, card.served_names[0])
    engine = AsyncEngine(core, _processor(card, ready), mirror, metrics, tracer=tracer)
    metrics.watch_progress(lambda: engine.vitals.stalled_s)
    return Serving(engine=engine, card=card, info=info, metrics=metrics)


def _processor(card: ModelCard, ready: CoreReady) -> Processor:
    text = card.tokenizer_json.decode()
    limits = ModelLimits(
        max_model_len=ready.max_model_len,
        vocab_size=card.vocab_size,
        max_logprobs=card.max_logprobs,
    )
    tokenizer = Tokenizer.from_json(text) if text else None
    return Processor(tokenizer, limits, defaults=card.generation_config)


def _description(ready: CoreReady, card: ModelCard, version: str) -> EngineDescription:
    return EngineDescription(
        max_model_len=ready.max_model_len,
        cache_info=_cache_info(ready, card),
        info={"version": version, "dtype": ready.dtype, "device": ready.device},
        startup_s=ready.load_report,
        roofline=ready.roofline,
    )


def _cache_info(ready: CoreReady, card: ModelCard) -> dict[str, str]:
    """Return the labels of cache_config_info, named as vLLM's."""
    return {
        "block_size": str(ready.block_size),
        "num_gpu_blocks": str(ready.num_blocks),
        "cache_dtype": ready.dtype,
        "enable_prefix_caching": str(card.has_prefix_caching),
    }
