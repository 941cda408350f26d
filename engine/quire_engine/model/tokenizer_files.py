"""Tokenizer, chat template and special tokens, from a model's folder or its GGUF file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire_engine.errors import ConfigError
from quire_engine.model.gguf_metadata import GgufMetadata
from quire_engine.model.gguf_tokenizer import special_tokens, tokenizer_json

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """Where a tokenizer comes from: a folder's files, or else the vocabulary of its GGUF file."""

    folder: Path
    gguf: GgufMetadata | None = None
    is_file_alone: bool = False
    """The GGUF file was named, not its folder, whose other files may be of other models."""

    @property
    def _is_rebuilt(self) -> bool:
        has_files = not self.is_file_alone and (self.folder / "tokenizer.json").is_file()
        return self.gguf is not None and not has_files

    def text(self) -> str:
        """Return the text of tokenizer.json.

        Raises:
            ConfigError: there is none, nor anything that it could be rebuilt from.
        """
        if self._is_rebuilt and self.gguf is not None:
            return tokenizer_json(self.gguf)
        file = self.folder / "tokenizer.json"
        if not file.is_file():
            raise ConfigError(
                f"{self.folder} has no tokenizer.json; write one with transformers' "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...), name another with "
                "--tokenizer, or use --skip-tokenizer-init and send token ids"
            )
        return file.read_text(encoding="utf-8")

    def special_tokens(self) -> dict[str, str]:
        """Return the text of the special tokens that chat templates refer to, by name."""
        from_gguf = special_tokens(self.gguf) if self.gguf else {}
        files = ("special_tokens_map.json", "tokenizer_config.json")
        tables = [read_json(self.folder / file) for file in files] if not self._is_rebuilt else []
        return from_gguf | {
            name: text
            for table in tables
            for name in _SPECIAL
            if (text := _token_text(table.get(name))) is not None
        }

    def chat_template(self) -> str | None:
        """Return the model's chat template; None where it has none, as base models do."""
        file = self.folder / "chat_template.jinja"
        if file.is_file() and not self._is_rebuilt:
            return file.read_text(encoding="utf-8")
        tables = ("tokenizer_config.json", "chat_template.json") if not self._is_rebuilt else ()
        for table in tables:
            template = _default_template(read_json(self.folder / table).get("chat_template"))
            if template is not None:
                return template
        return self.gguf.values.get("tokenizer.chat_template") if self.gguf else None


def read_chat_template(option: str) -> str:
    """Return the template that the option names (a file) or is.

    Raises:
        ConfigError: it is neither.
    """
    if "{" in option or "\n" in option:
        return option
    file = Path(option).expanduser()
    if not file.is_file():
        raise ConfigError(f"chat_template={option!r} is no file, and no template: it has no '{{'")
    return file.read_text(encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object; empty where the file does not exist.

    Raises:
        ConfigError: the file is not a JSON object.
    """
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{file} holds a JSON {type(value).__name__}, not an object")
    return value


def _token_text(token: str | Mapping[str, Any] | None) -> str | None:
    return token["content"] if isinstance(token, Mapping) else token


def _default_template(template: str | list[Mapping[str, str]] | None) -> str | None:
    if not isinstance(template, list):
        return template
    by_name = {entry["name"]: entry["template"] for entry in template}
    return by_name.get("default", next(iter(by_name.values()), None))
