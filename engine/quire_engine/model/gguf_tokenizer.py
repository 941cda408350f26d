"""Rebuilds tokenizer.json from the metadata of a GGUF file.

Two kinds of vocabulary exist for the supported models. "gpt2" is byte-level BPE with merges; how
text is cut before merging is only named (`tokenizer.ggml.pre`), so the patterns are listed here.
"llama" is SentencePiece BPE: merges follow from the scores, and unknown text falls back to bytes.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from quire_engine.errors import ConfigError
from quire_engine.model.gguf_metadata import GgufMetadata

logger = logging.getLogger(__name__)

_METASPACE = "\u2581"


class _TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION_AND_SPACE}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION_AND_SPACE}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "smaug-bpe", "dbrx"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), _QWEN2),
    "tekken": _TEKKEN,
    "gpt-4o": _GPT4O,
}
_DIGITS_APART = frozenset({"starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
# llama.cpp cuts smollm's digits apart as well. transformers does not when it reads a GGUF file, and
# ids are to equal its own; they differ only where several spaces or newlines precede a digit.
_GPT2_LIKE = frozenset({"default", "gpt-2", "smollm", "mpt", "olmo", "phi-2", "jais", "trillion"})
# Words that the vocabulary has whole are not built up from merges.
_WHOLE_WORDS_FIRST = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"})
_ADD_BOS_UNLESS_TOLD = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"})


def tokenizer_json(metadata: GgufMetadata) -> str:
    """Return the text of a tokenizer.json that encodes and decodes as the file's vocabulary.

    Raises:
        ConfigError: the file has no vocabulary, or one of an unsupported kind.
    """
    values = metadata.values
    kind, tokens = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ConfigError(f"{metadata.path.name} has no tokenizer; name one with --tokenizer")
    builders = {"gpt2": _byte_level, "llama": _sentence_piece}
    if kind not in builders:
        raise ConfigError(
            f"{metadata.path.name} has a tokenizer of kind {kind!r}; supported are "
            f"{', '.join(sorted(builders))}; name another with --tokenizer"
        )
    parts = builders[kind](values, tokens)
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(values, tokens),
        "post_processor": _post_processor(values, tokens, kind),
        **parts,
    }
    return json.dumps(document, ensure_ascii=False)


def special_tokens(metadata: GgufMetadata) -> dict[str, str]:
    """Return the text of bos_token, eos_token, unk_token and pad_token, where the file has them."""
    tokens = metadata.values.get("tokenizer.ggml.tokens", ())
    return {
        f"{name}_token": tokens[token_id] for name, token_id in _named_ids(metadata.values, tokens)
    }


def _named_ids(values: Mapping[str, Any], tokens: Sequence[str]) -> list[tuple[str, int]]:
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {name: values.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return [(name, i) for name, i in found.items() if i is not None and 0 <= i < len(tokens)]


def _byte_level(values: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    pre = values.get("tokenizer.ggml.pre", "default")
    types = _types(values, tokens)
    spelling = _byte_spelling()
    alphabet = frozenset(spelling)
    vocab = {
        token if type_ != _TokenType.NORMAL or alphabet.issuperset(token) else _spell(token): index
        for index, (token, type_) in enumerate(zip(tokens, types, strict=True))
    }
    return {
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(pre),
        "decoder": _BYTE_LEVEL,
        "model": _bpe(vocab, _file_merges(values), ignore_merges=pre in _WHOLE_WORDS_FIRST),
    }


_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


def _pre_tokenizer(pre: str) -> dict[str, Any]:
    if pre in _SPLITS:
        split = {
            "type": "Split",
            "pattern": {"Regex": _SPLITS[pre]},
            "behavior": "Isolated",
            "invert": False,
        }
        return _sequence([split, {**_BYTE_LEVEL, "use_regex": False}])
    if pre in _DIGITS_APART:
        return _sequence([{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL])
    if pre not in _GPT2_LIKE:
        logger.warning("unknown pre-tokenizer, taking GPT-2's name=%s", pre)
    return _BYTE_LEVEL


def _sequence(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": steps}


def _sentence_piece(values: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    has_prefix = values.get("tokenizer.ggml.add_space_prefix", True)
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = dict(_named_ids(values, tokens)).get("unk")
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _METASPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if has_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    merges = _file_merges(values) or merges_from_scores(
        vocab, values.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    )
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": _METASPACE,
            "prepend_scheme": "first" if has_prefix else "never",
            "split": False,
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            vocab,
            merges,
            fuse_unk=True,
            byte_fallback=True,
            unk_token=None if unknown is None else tokens[unknown],
        ),
    }


def merges_from_scores(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return the merges that a SentencePiece vocabulary implies, best first.

    Each token can arise from any two tokens that spell it; the higher its score, the earlier.
    """
    merges = [
        (scores[index], len(left), len(right), -vocab[left], -vocab[right], left, right)
        for token, index in vocab.items()
        for left, right in ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        if left in vocab and right in vocab
    ]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    return [(merge[5], merge[6]) for merge in merges]


def _bpe(
    vocab: Mapping[str, int], merges: Sequence[Sequence[str]], **options: Any
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **options,
        "vocab": vocab,
        "merges": merges,
    }


def _file_merges(values: Mapping[str, Any]) -> list[list[str]]:
    return [merge.split(" ", 1) for merge in values.get("tokenizer.ggml.merges") or ()]


def _types(values: Mapping[str, Any], tokens: Sequence[str]) -> Sequence[int]:
    return values.get("tokenizer.ggml.token_type") or [_TokenType.NORMAL] * len(tokens)


def _added_tokens(values: Mapping[str, Any], tokens: Sequence[str]) -> list[dict[str, Any]]:
    """List tokens that text is searched for whole: control tokens and those that users added."""
    named = {token_id for _, token_id in _named_ids(values, tokens)}
    types = _types(values, tokens)
    return [
        {
            "id": index,
            "content": tokens[index],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": type_ != _TokenType.USER_DEFINED,
        }
        for index, type_ in enumerate(types)
        if index in named or type_ in (_TokenType.CONTROL, _TokenType.USER_DEFINED)
    ]


def _post_processor(
    values: Mapping[str, Any], tokens: Sequence[str], kind: str
) -> dict[str, Any] | None:
    pre = values.get("tokenizer.ggml.pre")
    add_bos = values.get(
        "tokenizer.ggml.add_bos_token", kind == "llama" or pre in _ADD_BOS_UNLESS_TOLD
    )
    add_eos = values.get("tokenizer.ggml.add_eos_token", False)
    ids = dict(_named_ids(values, tokens))
    before = [ids["bos"]] if add_bos and "bos" in ids else []
    after = [ids["eos"]] if add_eos and "eos" in ids else []
    if not before and not after:
        return None

    def template(sequence: str, type_id: int) -> list[dict[str, Any]]:
        def special(token_id: int) -> dict[str, Any]:
            return {"SpecialToken": {"id": tokens[token_id], "type_id": type_id}}

        text = {"Sequence": {"id": sequence, "type_id": type_id}}
        return [*map(special, before), text, *map(special, after)]

    return {
        "type": "TemplateProcessing",
        "single": template("A", 0),
        "pair": template("A", 0) + template("B", 1),
        "special_tokens": {
            tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in before + after
        },
    }


def _byte_spelling() -> list[str]:
    """Return GPT-2's character for each byte: printable ones stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _spell(token: str) -> str:
    spelling = _byte_spelling()
    return "".join(spelling[byte] for byte in token.encode())
