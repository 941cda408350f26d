"""`quire version`: what is installed here, for bug reports."""

import importlib.metadata
import platform
import sys
from collections.abc import Sequence

from quire_engine.flags import Parser

PACKAGES = ("quire", "torch", "triton", "grpcio", "tokenizers", "fastapi")


def run(prog: str, arguments: Sequence[str]) -> int:
    """Print versions, one a line."""
    parser = Parser(prog, "Print the versions of Quire and of what it runs on.")
    parser.add_argument("--short", action="store_true", help="only the version of Quire")
    namespace = parser.parse_args(arguments)
    if namespace.short:
        sys.stdout.write(f"{_version('quire')}\n")
        return 0
    rows = [(name, _version(name)) for name in PACKAGES]
    rows.insert(1, ("python", platform.python_version()))
    rows += [("platform", platform.platform()), ("device", _device())]
    sys.stdout.writelines(f"{name:<12}{value}\n" for name, value in rows)
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    try:
        import torch
    except ModuleNotFoundError:
        return "unknown (torch is not installed)"
    if not torch.cuda.is_available():
        return f"cpu ({torch.get_num_threads()} threads)"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names)
