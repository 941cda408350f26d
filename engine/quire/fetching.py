"""Downloading a model ahead of the engines that will serve it.

A marker beside the hub's cache records what is complete, so that the next call needs no hub: a pod
that starts while the hub is away must not care.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from quire_engine.config import option
from quire_engine.errors import ConfigError
from quire_engine.model.hub import Hub

MARKERS = ".quire"
"""Folder of the markers, inside the cache."""
MAX_CONFIG_BYTES = 3500
"""Kubernetes keeps 4096 bytes of a last message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchConfig:
    """Which model, and where to."""

    model: str = option("", "hub name of the model: OWNER/REPOSITORY or OWNER/REPOSITORY:FILE.gguf")
    revision: str | None = option(None, "branch, tag or commit of the model on the hub")
    download_dir: str | None = option(None, "where to keep downloads; default: the hub's cache")
    hf_token: str | None = option(None, "access token of the hub; default: HF_TOKEN or the login")
    report: str | None = option(
        None, "file to write what was fetched to, as JSON: a container's /dev/termination-log"
    )
    force: bool = option(False, "ask the hub even if the model is marked complete")

    def __post_init__(self) -> None:
        if self.model.count("/") != 1 or self.model.startswith(("/", ".", "~")):
            raise ConfigError(
                f"MODEL must be OWNER/REPOSITORY on the hub, not {self.model!r}; "
                "a model in a folder needs no download"
            )


@dataclass(frozen=True, slots=True)
class Fetched:
    """Where a model is now."""

    path: Path
    num_bytes: int
    was_there: bool
    """It was complete before: the hub was not asked."""


def fetch(config: FetchConfig, *, endpoint: str | None = None) -> Fetched:
    """Download a model unless its marker says that it is there.

    Raises:
        ConfigError: no such model, no access, or the hub cannot be reached.
    """
    cache = Path(config.download_dir or _hub_cache())
    marker = _marker(cache, config)
    if not config.force and (known := _read(cache, marker)):
        return known
    hub = Hub(
        revision=config.revision, token=config.hf_token, cache_dir=str(cache), endpoint=endpoint
    )
    path = hub.download(config.model, with_weights=True)
    num_bytes = _num_bytes(path)
    _write(marker, {"model": config.model, "path": _inside(cache, path), "num_bytes": num_bytes})
    return Fetched(path, num_bytes, was_there=False)


def report(fetched: Fetched) -> str:
    """Return what whoever started the download wants to know, as JSON.

    The model's config.json is in it, unless it is too large for a container's last message.
    """
    record: dict[str, object] = {"bytes": fetched.num_bytes}
    config = fetched.path / "config.json"
    if config.is_file() and config.stat().st_size < MAX_CONFIG_BYTES:
        # The engine will complain about a broken one, and have more to say.
        with contextlib.suppress(ValueError):
            record["config"] = json.loads(config.read_text())
    return json.dumps(record, separators=(",", ":"))


def _hub_cache() -> str:
    from huggingface_hub import constants  # slow to import

    return str(constants.HF_HUB_CACHE)


def _marker(cache: Path, config: FetchConfig) -> Path:
    name = f"{config.model}@{config.revision or ''}"
    return cache / MARKERS / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"


def _read(cache: Path, marker: Path) -> Fetched | None:
    try:
        record = json.loads(marker.read_text())
        path = cache / record["path"]
        num_bytes = int(record["num_bytes"])
    except (OSError, ValueError, KeyError):
        return None
    # Somebody may have removed the files and left the marker.
    return Fetched(path, num_bytes, was_there=True) if _num_bytes(path) == num_bytes else None


def _write(marker: Path, record: dict[str, object]) -> None:
    """Write as a whole or not at all: a job can be killed at any moment."""
    marker.parent.mkdir(parents=True, exist_ok=True)
    draft = marker.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(record) + "\n")
    draft.replace(marker)


def _inside(cache: Path, path: Path) -> str:
    """Return the path as seen from the cache, which may be mounted elsewhere next time."""
    return str(path.absolute().relative_to(cache.absolute()))


def _num_bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
