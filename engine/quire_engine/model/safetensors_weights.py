"""Tensors of safetensors files, read through memory maps one at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from quire_engine.errors import ConfigError


def read_safetensors(
    files: Sequence[Path], *, shows_progress: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of all files, with a progress bar over them.

    Raises:
        ConfigError: a file cannot be read.
    """
    for path in tqdm(files, desc="Loading safetensors", unit="file", disable=not shows_progress):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no dict: it cannot be iterated)
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"cannot read the weights {path}: {error}") from error
