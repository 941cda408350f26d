"""Which optional parts of Quire a command needs, told in one line when they are missing."""

import importlib.util

MODULES_OF_EXTRA = {
    "engine": ("grpc", "safetensors", "tokenizers", "torch", "zmq"),
    "router": ("fastapi", "grpc", "tokenizers", "uvicorn"),
}


class MissingExtraError(Exception):
    """A command needs an extra that is not installed."""


def require_extra(*extras: str) -> None:
    """Check that the packages of `extras` are installed, without importing them.

    Raises:
        MissingExtraError: naming the packages and the command that installs them.
    """
    missing = {
        extra: [name for name in MODULES_OF_EXTRA[extra] if not is_installed(name)]
        for extra in extras
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
