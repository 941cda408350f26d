"""Programs in a Python that lacks packages which a machine with torch and a GPU may not have."""

import subprocess
import sys
from collections.abc import Iterable

SERVER_PACKAGES = (
    *("fastapi", "grpc", "grpc_health", "grpc_reflection", "msgspec", "opentelemetry", "orjson"),
    *("uvicorn", "uvloop", "zmq"),
)
"""What only processes that serve need."""
OTHER_PACKAGES = ("aiohttp", "gguf", "hypothesis", "rich", "safetensors", "transformers")
"""What clients, tests and GGUF files need."""


def run_without(packages: Iterable[str], program: str) -> "subprocess.CompletedProcess[str]":
    """Run `program` where importing any of `packages` fails."""
    missing = f"import sys; sys.modules.update(dict.fromkeys({tuple(packages)!r}))\n"
    return subprocess.run(
        [sys.executable, "-c", missing + program],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
