"""Compiles the C sources, once for each version of them, into the user's cache folder."""

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("source")
MAIN = "decoder.c"
COMPILERS = ("cc", "gcc", "clang")
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fPIC",
    "-shared",
    "-pthread",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512vl",
    "-mavx512dq",
    "-mavx512bf16",
    "-mfma",
)
MAX_COMPILE_S = 120


class BuildError(Exception):
    """The sources cannot be compiled here; the message says why."""


class FolderError(BuildError):
    """The folder for the result cannot be written."""


def build(folder: Path) -> Path:
    """Return the compiled library, from `folder` if it was compiled before.

    Safe for several processes at once: each compiles into a file of its own and renames it.

    Raises:
        FolderError: `folder` cannot be written.
        BuildError: there is no compiler, or it fails.
    """
    compiler = find_compiler()
    target = folder / f"cpu-{fingerprint(compiler)}.so"
    if target.exists():
        return target
    started_at = time.perf_counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            output = Path(scratch) / "cpu.so"
            _compile(compiler, output)
            output.replace(target)
    except OSError as error:
        raise FolderError(f"{folder}: {error.strerror or error}") from error
    logger.info(
        "CPU kernels compiled path=%s duration_s=%.1f", target, time.perf_counter() - started_at
    )
    return target


def find_compiler() -> str:
    """Return the path of the machine's C compiler.

    Raises:
        BuildError: there is none.
    """
    for name in COMPILERS:
        if (path := shutil.which(name)) is not None:
            return os.path.realpath(path)
    raise BuildError("there is no C compiler")


def fingerprint(compiler: str) -> str:
    """Return a name for what the compiler makes of the sources."""
    digest = hashlib.sha256()
    for part in (compiler, *FLAGS):
        digest.update(part.encode() + b"\0")
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, output: Path) -> None:
    command = [compiler, *FLAGS, str(SOURCE / MAIN), "-o", str(output)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=MAX_COMPILE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"{compiler} took more than {MAX_COMPILE_S} s") from None
    if done.returncode:
        first_lines = " | ".join(done.stderr.strip().splitlines()[:3])
        raise BuildError(f"{compiler} failed: {first_lines}")
