"""Small tokenizers of every kind whose decoder Quire knows, made without any file."""

import json
from typing import Any

METASPACE = "\N{LOWER ONE EIGHTH BLOCK}"

_PIECES = [
    METASPACE,
    METASPACE * 2,
    f"{METASPACE}Hello",
    f"{METASPACE}world",
    f"a{METASPACE}b",
    "Hello",
    "lo",
    "\n",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "\N{CJK UNIFIED IDEOGRAPH-4E2D}",
    "\N{GRINNING FACE}",
    "ab",
    "bc",
    "a",
    "b",
    "c",
    ".",
]
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_end|>")


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": list(steps)}


_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_FALLBACK = {"type": "ByteFallback"}
_FUSE = {"type": "Fuse"}

DECODERS: dict[str, dict[str, Any] | None] = {
    "llama": _sequence(_replace(METASPACE, " "), _FALLBACK, _FUSE, _STRIP),
    "strip two": _sequence(_replace(METASPACE, " "), _FALLBACK, _FUSE, {**_STRIP, "start": 2}),
    "gemma": _sequence(_replace(METASPACE, " "), _FALLBACK, _FUSE),
    "metaspace": {"type": "Metaspace", "replacement": METASPACE, "prepend_scheme": "always"},
    "metaspace never": {
        "type": "Metaspace",
        "replacement": METASPACE,
        "prepend_scheme": "never",
    },
    "none": None,
}


def sentencepiece_json(decoder: str) -> str:
    """Return a tokenizer.json with SentencePiece-like tokens, byte tokens and special tokens."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: token_id for token_id, token in enumerate([*SPECIAL, *byte_tokens, *_PIECES])}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [added_token(token_id, token) for token_id, token in enumerate(SPECIAL)]
            + [added_token(len(vocab), " plain added ", special=False)],
            "normalizer": _replace(" ", METASPACE),
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": DECODERS[decoder],
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": vocab,
                "merges": [],
            },
        }
    )


def byte_level_json() -> str:
    """Return a tokenizer.json of byte-level BPE with a few merged and added tokens."""
    stand_ins = iter(range(256, 512))
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    alphabet = [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]
    merged = ["".join(alphabet[byte] for byte in piece) for piece in _byte_pieces()]
    vocab = {token: token_id for token_id, token in enumerate([*alphabet, *merged])}
    specials = [added_token(len(vocab) + index, token) for index, token in enumerate(SPECIAL)]
    added = ["<tool call>", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{GRINNING FACE}"]
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return json.dumps(
        {
            "version": "1.0",
            "truncation": {
                "direction": "Right",
                "max_length": 4,
                "strategy": "LongestFirst",
                "stride": 0,
            },
            "padding": None,
            "added_tokens": specials
            + [
                added_token(len(vocab) + len(specials) + index, token, special=False)
                for index, token in enumerate(added)
            ],
            "normalizer": None,
            "pre_tokenizer": level,
            "post_processor": None,
            "decoder": level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocab,
                "merges": [],
            },
        }
    )


def _byte_pieces() -> list[bytes]:
    grin = "\N{GRINNING FACE}".encode()
    return [b"ab", b" a", grin[:2], grin[2:], grin[:3], grin[1:3], b"a" + grin[:1], grin[3:] + b"b"]


def added_token(token_id: int, content: str, *, special: bool = True) -> dict[str, Any]:
    """Return an entry of `added_tokens`."""
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }
