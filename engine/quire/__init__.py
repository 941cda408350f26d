"""The public face of Quire: `from quire import LLM, SamplingParams`, and the `quire` command.

Names are imported when they are first used, so that the command line starts without the engine's
packages, and those that install only a part of Quire get what that part can give.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors, which do not see __getattr__
    from quire.llm import LLM
    from quire_engine.outputs import CompletionOutput, Logprob, RequestOutput
    from quire_engine.sampling_params import RequestOutputKind, SamplingParams

_HOMES = {
    "LLM": "quire.llm",
    "CompletionOutput": "quire_engine.outputs",
    "Logprob": "quire_engine.outputs",
    "RequestOutput": "quire_engine.outputs",
    "RequestOutputKind": "quire_engine.sampling_params",
    "SamplingParams": "quire_engine.sampling_params",
}

__all__ = [
    "LLM",
    "CompletionOutput",
    "Logprob",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
