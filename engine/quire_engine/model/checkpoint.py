"""Finds the weight files of a model in a directory."""

import json
from dataclasses import dataclass
from pathlib import Path

from quire_engine.errors import ConfigError
from quire_engine.model.gguf_metadata import is_first_shard, shard_names
from quire_engine.model.hub import convert_advice

_INDEX = "model.safetensors.index.json"
_NOT_THE_MODEL = ("consolidated", "adapter_", "training_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model's files: a folder with a config.json, or GGUF files that need none."""

    folder: Path
    format: str
    """safetensors, gguf or dummy."""
    weight_files: tuple[Path, ...] = ()
    gguf: Path | None = None
    """The GGUF file that has the metadata."""


def find_checkpoint(path: Path, load_format: str) -> Checkpoint:
    """Find the weights in `path`, a directory or a GGUF file, in the format asked for.

    Raises:
        ConfigError: nothing usable is there; the message says what is.
    """
    found = _of_gguf(path) if path.is_file() else _of_folder(path, load_format)
    if load_format == "dummy":
        return Checkpoint(folder=found.folder, format="dummy", gguf=found.gguf)
    if load_format not in ("auto", found.format):
        raise ConfigError(f"{path} holds {found.format} weights, not load_format={load_format}")
    return found


def _of_gguf(path: Path) -> Checkpoint:
    shards = [path.with_name(name) for name in shard_names(path.name)]
    _check_present(shards)
    return Checkpoint(folder=path.parent, format="gguf", weight_files=tuple(shards), gguf=shards[0])


def _of_folder(folder: Path, load_format: str) -> Checkpoint:
    has_config = (folder / "config.json").is_file()
    if has_config and load_format == "dummy":
        return Checkpoint(folder=folder, format="dummy")
    gguf = [file for file in sorted(folder.glob("*.gguf")) if is_first_shard(file.name)]
    safetensors = _safetensors(folder)
    if gguf and (not safetensors or load_format == "gguf"):
        if len(gguf) > 1:
            names = ", ".join(file.name for file in gguf)
            raise ConfigError(f"{folder} has several GGUF files; name one of them: {names}")
        return _of_gguf(gguf[0])
    if not safetensors and any(folder.glob("*.bin")):
        raise ConfigError(convert_advice(str(folder)))
    if not safetensors:
        raise ConfigError(f"{folder} holds no *.safetensors and no *.gguf")
    if not has_config:
        raise ConfigError(f"{folder} has no config.json beside its safetensors")
    return Checkpoint(folder=folder, format="safetensors", weight_files=tuple(safetensors))


def _safetensors(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [folder / shard for shard in shards]
        _check_present(files)
        return files
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if not file.name.startswith(_NOT_THE_MODEL)]


def _check_present(files: list[Path]) -> None:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ConfigError(f"{files[0].parent} lacks weight files: {', '.join(missing)}")
