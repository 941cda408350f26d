"""Downloads models from the Hugging Face hub, or finds them in its cache.

Everything that can go wrong becomes a ConfigError that names the model and what to do next.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from quire_engine.errors import ConfigError
from quire_engine.model.gguf_metadata import is_first_shard, shard_names
from quire_engine.progress import DownloadProgress, has_bars

_TIMEOUT_S = 20.0
TEXT_FILES = ("*.json", "*.jinja", "*.txt")
# Other forms of the same weights, and parts of other models.
_NEVER = ("*/*", "consolidated*", "adapter_*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """How to reach the hub."""

    revision: str | None = None
    token: str | None = None
    cache_dir: str | None = None
    """None: the hub's own cache."""
    endpoint: str | None = None
    """None: the public hub, or HF_ENDPOINT."""

    def download(self, name: str, *, with_weights: bool) -> Path:
        """Return the folder, or the GGUF file, of the model `owner/repo` or `owner/repo:file.gguf`.

        Shows progress. Offline, or when nothing changed, it comes from the cache.

        Raises:
            ConfigError: the name is wrong, access is denied, or the hub cannot be reached.
        """
        repo, _, file = name.partition(":")
        with _explained(name):
            files = self._list(repo)
            if file:
                return self._gguf(repo, file, files)
            folder = self._snapshot(repo, _patterns(name, files, with_weights=with_weights))
        gguf = [file for file in sorted(folder.glob("*.gguf")) if is_first_shard(file.name)]
        has_config = (folder / "config.json").exists()
        return gguf[0] if len(gguf) == 1 and not has_config else folder

    def _list(self, repo: str) -> list[str] | None:
        """Return the repository's files; None where only the cache can tell."""
        import huggingface_hub as hub  # slow to import, and not needed for a local model

        api = hub.HfApi(endpoint=self.endpoint, token=self.token)
        try:
            info = api.model_info(repo, revision=self.revision, timeout=_TIMEOUT_S)
        except hub.errors.HfHubHTTPError:
            raise
        except _unreachable():
            return None
        return [file.rfilename for file in info.siblings or ()]

    def _snapshot(
        self, repo: str, patterns: Sequence[str] | None, never: Sequence[str] = _NEVER
    ) -> Path:
        import huggingface_hub as hub

        # Theirs is shown on terminals alone.
        progress: Any = None if has_bars() else DownloadProgress
        try:
            path = hub.snapshot_download(
                repo,
                revision=self.revision,
                token=self.token,
                cache_dir=self.cache_dir,
                endpoint=self.endpoint,
                allow_patterns=None if patterns is None else list(patterns),
                ignore_patterns=list(never),
                local_files_only=patterns is None,
                tqdm_class=progress,
            )
        except hub.errors.LocalEntryNotFoundError as error:
            # The cache holds what was asked for then, not the whole repository.
            partial: str | None = getattr(error, "snapshot_path", None)
            if partial is None:
                raise
            return Path(partial)
        return Path(path)

    def _gguf(self, repo: str, file: str, files: list[str] | None) -> Path:
        if files is not None and file not in files:
            known = ", ".join(name for name in files if name.endswith(".gguf")) or "none"
            raise ConfigError(f"{repo} has no file {file}; its GGUF files are: {known}")
        patterns = None if files is None else [*shard_names(file), *TEXT_FILES]
        return self._snapshot(repo, patterns, never=()) / file


def _patterns(name: str, files: list[str] | None, *, with_weights: bool) -> list[str] | None:
    """Choose what to download; None: whatever the cache has."""
    if files is None:
        return None
    if not with_weights and "config.json" in files:
        return [*TEXT_FILES]
    top = [file for file in files if not any(fnmatch(file, pattern) for pattern in _NEVER)]
    if any(file.endswith(".safetensors") for file in top):
        return ["*.safetensors", *TEXT_FILES]
    gguf = [file for file in top if file.endswith(".gguf")]
    wholes = [file for file in gguf if is_first_shard(file)]
    if len(wholes) > 1:
        raise ConfigError(
            f"{name} has several GGUF files; name one, as {name}:{wholes[0]}; "
            f"there are: {', '.join(wholes)}"
        )
    if wholes:
        return [*shard_names(wholes[0]), *TEXT_FILES]
    if any(file.endswith(".bin") for file in top):
        raise ConfigError(convert_advice(name))
    raise ConfigError(f"{name} holds no *.safetensors and no *.gguf; is it a language model?")


def convert_advice(name: str) -> str:
    """Say what to do about a model that comes as pickled *.bin files only."""
    return (
        f"{name} has only *.bin weights, which can run code when they are loaded; convert them: "
        "transformers.AutoModelForCausalLM.from_pretrained(...).save_pretrained(...) "
        "writes safetensors"
    )


def _unreachable() -> tuple[type[Exception], ...]:
    """Return what no connection raises: requests' errors are OSErrors, httpx's are HTTPErrors."""
    from huggingface_hub import errors

    return (OSError, errors.HTTPError)  # type: ignore[attr-defined] # of whichever library it uses


@contextmanager
def _explained(name: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"{name} is gated: accept its terms on the hub, then give a token that may read it "
            "(--hf-token, HF_TOKEN or `hf auth login`)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{name} has no such revision on the hub (--revision)") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ConfigError(
            f"{name!r} is neither a local path nor a model on the hub; if it is private, "
            "give a token (--hf-token or HF_TOKEN)"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ConfigError(
            f"{name} is not in the local cache and the hub cannot be reached; connect, "
            "or give a local directory"
        ) from error
    except _unreachable() as error:
        raise ConfigError(f"downloading {name} failed: {_first_line(error)}") from error


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
