"""Keywords of `LLM(...)` to a configuration: Quire's own, and what vLLM's users also pass."""

import difflib
import logging
from collections.abc import Mapping
from typing import Any, get_type_hints

from quire_engine.config import (
    CacheConfig,
    DeviceConfig,
    EngineConfig,
    ModelConfig,
    ProfilingConfig,
    SchedulerConfig,
    option_names,
)
from quire_engine.errors import ConfigError
from quire_engine.peer_flags import PEER_FLAGS

logger = logging.getLogger(__name__)

_PARTS = (ModelConfig, CacheConfig, SchedulerConfig, DeviceConfig, ProfilingConfig)

# Keywords of vLLM's LLM that are no flags of its server.
_PEER_KEYWORDS = frozenset(
    {
        "disable_log_stats",
        "quantization_config",
        "return_sampling_mask",
        "structured_outputs_config",
        "usage_context",
    }
)


def engine_config(model: str, options: Mapping[str, Any]) -> EngineConfig:
    """Build the configuration of an `LLM`. None means the default, as in vLLM.

    Keywords that vLLM knows and Quire does not are named in one warning.

    Raises:
        TypeError: a keyword that neither knows; the message names the nearest.
        ConfigError: a value of the wrong type or out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    known = option_names()
    peers = _peer_keywords()
    for name in given:
        if name not in known and name not in peers:
            raise TypeError(_unknown(name, [*known, *peers]))
    if ignored := [name for name in given if name not in known]:
        logger.warning("%s", _ignored(ignored, peers))
    values = {"model": str(model)} | {name: given[name] for name in given if name in known}
    if "dtype" in values:
        values["dtype"] = str(values["dtype"]).removeprefix("torch.")
    hints = {name: hint for part in _PARTS for name, hint in get_type_hints(part).items()}
    return EngineConfig.from_flat(
        {name: _checked(name, value, hints[name]) for name, value in values.items()}
    )


def _peer_keywords() -> dict[str, str]:
    """Return vLLM's keywords and, where there is one, the reason why each has no effect."""
    flags = {
        name.lstrip("-").replace("-", "_"): flag.reason
        for name, flag in PEER_FLAGS.items()
        if name.startswith("--") and not name.startswith("--no-")
    }
    return dict.fromkeys(_PEER_KEYWORDS, "") | flags


def _unknown(name: str, known: list[str]) -> str:
    message = f"LLM() got an unexpected keyword argument {name!r}"
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"{message}; did you mean {nearest[0]!r}?" if nearest else message


def _ignored(names: list[str], peers: Mapping[str, str]) -> str:
    shown = [f"{name} ({peers[name]})" if peers[name] else name for name in names]
    return f"LLM() arguments without effect in Quire: {', '.join(shown)}"


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Return `value` as its field wants it; `hint` is a type, or a union with None."""
    types = tuple(getattr(part, "__origin__", part) for part in getattr(hint, "__args__", (hint,)))
    if getattr(hint, "__origin__", None) is not None:
        types = (hint.__origin__,)
    if float in types and type(value) is int:
        return float(value)
    if types == (tuple,) and isinstance(value, str | list):
        return (value,) if isinstance(value, str) else tuple(value)
    if isinstance(value, types) and (bool in types or not isinstance(value, bool)):
        return value
    expected = " or ".join(type_.__name__ for type_ in types if type_ is not type(None))
    raise ConfigError(f"{name} must be of type {expected}, got {value!r}")
