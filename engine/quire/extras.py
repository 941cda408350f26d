"""Which optional parts of Quire a command needs, told in one line when they are missing."""

import importlib.util
from collections.abc import Mapping, Sequence

MODULES_OF_LLM = ("tokenizers", "torch")
"""What a model in this process needs of the extra `engine`: no server, so neither gRPC nor ZMQ."""
MODULES_OF_EXTRA = {
    "engine": ("grpc", *MODULES_OF_LLM, "zmq"),
    "router": ("fastapi", "grpc", "tokenizers", "uvicorn"),
}


class MissingExtraError(Exception):
    """A command needs an extra that is not installed."""


def require_extra(*extras: str) -> None:
    """Check that the packages of `extras` are installed, without importing them.

    Raises:
        MissingExtraError: naming the packages and the command that installs them.
    """
    _require({extra: MODULES_OF_EXTRA[extra] for extra in extras})


def require_llm() -> None:
    """Check that a model can run in this process, without importing what runs it.

    Raises:
        MissingExtraError: as `require_extra`.
    """
    _require({"engine": MODULES_OF_LLM})


def _require(modules: Mapping[str, Sequence[str]]) -> None:
    missing = {
        extra: [name for name in names if not is_installed(name)]
        for extra, names in modules.items()
    }
    absent = sorted({name for names in missing.values() for name in names})
    if absent:
        needed = ",".join(extra for extra, names in missing.items() if names)
        raise MissingExtraError(
            f"not installed: {', '.join(absent)}; run: pip install 'quire[{needed}]'"
        )


def is_installed(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None
