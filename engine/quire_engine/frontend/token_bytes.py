"""The exact bytes that each token stands for, read off the tokenizer's decoder.

`tokenizers` decodes lists of ids to text, which loses what streaming and logprobs need: the bytes
of one token, which may be a part of a character. Every decoder of a language model is a chain of
few steps that work token by token, so the bytes follow from the token's own text:

    ByteLevel       each character is a byte of GPT-2's alphabet
    Replace         SentencePiece's metaspace to a space, mostly
    ByteFallback    <0x0A> is the byte 10
    Metaspace       the metaspace to a space; none in the first token
    Fuse, Strip     spaces at the very start of the text are dropped
    no decoder      tokens are joined by spaces

In a run of ByteFallback tokens that is not valid UTF-8, `tokenizers` replaces every byte. Here the
valid characters of such a run are kept, since a stream cannot take back what it has sent; apart
from that, decoding these bytes gives the text of `tokenizers` exactly.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from quire_engine.errors import ConfigError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

PieceBytes = Callable[[str], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderRules:
    """What a decoder does to a token, and how the start of the text differs."""

    piece: PieceBytes
    """Bytes of a token's text."""
    first_piece: PieceBytes | None = None
    """Bytes when it is the first token, where that differs."""
    num_strip: int = 0
    """Most leading spaces to drop from the whole text."""

    @property
    def start_differs(self) -> bool:
        return self.first_piece is not None or self.num_strip > 0


@dataclass(slots=True)
class _Builder:
    """Collects the steps of a decoder chain."""

    replacements: list[tuple[str, str]] = field(default_factory=list)
    metaspace: str | None = None
    strips_first: bool = False
    byte_level: bool = False
    byte_fallback: bool = False
    fused: bool = False
    num_strip: int = 0

    def build(self) -> DecoderRules:
        first = self._encode_first if self.metaspace is not None and self.strips_first else None
        return DecoderRules(piece=self._encode, first_piece=first, num_strip=self.num_strip)

    def _encode(self, text: str) -> bytes:
        for old, new in self.replacements:
            text = text.replace(old, new)
        if self.metaspace is not None:
            text = text.replace(self.metaspace, " ")
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(match[1], 16)])
        return _byte_level(text) if self.byte_level else text.encode()

    def _encode_first(self, text: str) -> bytes:
        return self._encode(text.replace(self.metaspace or "", ""))


def decoder_rules(decoder: Mapping[str, Any] | None) -> DecoderRules:
    """Return the rules of the `decoder` section of a tokenizer.json.

    Raises:
        ConfigError: a decoder whose text cannot be had token by token.
    """
    if decoder is None:
        return DecoderRules(piece=lambda text: f" {text}".encode(), first_piece=str.encode)
    builder = _Builder()
    for step in decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]:
        add = _STEPS.get(step["type"])
        if add is None:
            raise ConfigError(
                f"the tokenizer's decoder has a step of type {step['type']!r}; "
                f"known are {', '.join(_STEPS)}"
            )
        add(builder, step)
    return builder.build()


def _add_replace(builder: _Builder, step: Mapping[str, Any]) -> None:
    pattern = step["pattern"].get("String")
    if pattern is None or (builder.fused and len(pattern) > 1):
        raise ConfigError(f"the tokenizer's decoder replaces {step['pattern']}, across tokens")
    builder.replacements.append((pattern, step["content"]))


def _add_metaspace(builder: _Builder, step: Mapping[str, Any]) -> None:
    builder.metaspace = step["replacement"]
    scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
    builder.strips_first = scheme != "never"


def _add_byte_level(builder: _Builder, _step: Mapping[str, Any]) -> None:
    builder.byte_level = True


def _add_byte_fallback(builder: _Builder, _step: Mapping[str, Any]) -> None:
    builder.byte_fallback = True


def _add_fuse(builder: _Builder, _step: Mapping[str, Any]) -> None:
    builder.fused = True


def _add_strip(builder: _Builder, step: Mapping[str, Any]) -> None:
    if not builder.fused or step["content"] != " " or step["stop"]:
        raise ConfigError(f"the tokenizer's decoder strips {step}; only leading spaces are known")
    builder.num_strip = step["start"]


_STEPS: dict[str, Callable[[_Builder, Mapping[str, Any]], None]] = {
    "ByteLevel": _add_byte_level,
    "ByteFallback": _add_byte_fallback,
    "Fuse": _add_fuse,
    "Metaspace": _add_metaspace,
    "Replace": _add_replace,
    "Strip": _add_strip,
}


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: printable bytes stand for themselves, others for 256 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + position): byte for position, byte in enumerate(others)
    }


_BYTE_OF = _byte_alphabet()


def _byte_level(text: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in text])
    except KeyError:
        return text.encode()  # An added token, written as plain text.
