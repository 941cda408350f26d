import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gguf_files import write_gguf
from quire_engine.errors import ConfigError
from quire_engine.model.demo import demo_model
from quire_engine.model.gguf_metadata import read_metadata
from quire_engine.model.gguf_tokenizer import (
    merges_from_scores,
    special_tokens,
    tokenizer_json,
)

TEXTS = (
    "",
    "The capital of France is Paris.",
    "it's WE'LL don't I'm they've",
    "def f(x: int) -> str:\n    return f'{x:>10}'  # \u20ac 12\n\n\nclass A:\n\tpass\r\n",
    "   leading and   inner    spaces, trailing   ",
    "\t\ttabs\t 3\n\n 4  5   6\n\n7",
    "1234567890 3.14159 1,000,000 0x1F 12:30 2026-11-23",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \uc548\ub155",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u041f\u0440\u0438\u0432\u0435\u0442",
    "na\u00efve cafe\u0301 \u00bd \u2167 \ufb01",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|endoftext|> <|im_start|x|> <repo_name>a/b<file_sep>",
    "\u00a0nbsp\u2003em\u200bzero\ufeffbom \x00\x01\x7f",
    '{"a": [1, 2.5e-3, null], "b": "\\u00e9"} https://x.y/z?q=1&r=%20',
)


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json(read_metadata(demo_model())))


@pytest.fixture(scope="module")
def theirs() -> PreTrainedTokenizerBase:
    return from_transformers(demo_model())


def from_transformers(file: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        str(file.parent), gguf_file=file.name
    )
    return tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_the_demo_model_encodes_as_transformers_does(
    ours: Tokenizer, theirs: PreTrainedTokenizerBase, text: str
) -> None:
    ids = ours.encode(text).ids

    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids, skip_special_tokens=False) == text
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@settings(max_examples=300)
@given(st.text(max_size=60) | st.text("ab 1\n\t'.<|>\u00e9\u4f60", max_size=60))
def test_any_text_encodes_as_with_transformers_and_comes_back(
    ours: Tokenizer, theirs: PreTrainedTokenizerBase, text: str
) -> None:
    ids = ours.encode(text).ids

    assert ids == theirs(text)["input_ids"]
    # The vocabulary lacks a few bytes, such as some control characters.
    assert ours.pre_tokenizer is not None
    letters = {letter for piece, _ in ours.pre_tokenizer.pre_tokenize_str(text) for letter in piece}
    if all(ours.token_to_id(letter) is not None for letter in letters):
        assert ours.decode(ids, skip_special_tokens=False) == text


def test_the_demo_model_s_special_tokens(ours: Tokenizer) -> None:
    added = ours.get_added_tokens_decoder()

    assert len(added) == 17
    assert all(token.special for token in added.values())
    assert special_tokens(read_metadata(demo_model()))["eos_token"] == "<|im_end|>"


def byte_level_gguf(path: Path, pre: str, **extra: Any) -> Path:
    """Write a file with a small byte-level vocabulary, learned with the pattern's merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=alphabet,
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([text * 3 for text in TEXTS] * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].__getitem__), "<think>"]
    types = [3, 3] + [1] * (len(tokens) - 3) + [4]
    values = {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": tokens,
        "ggml.token_type": types,
        "ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "ggml.bos_token_id": 0,
        "ggml.eos_token_id": 1,
        **extra,
    }
    return write_gguf(path, tokenizer=values)


def tokenizer_of(file: Path) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json(read_metadata(file)))


@pytest.mark.parametrize("pre", ["default", "gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_every_way_to_cut_text_agrees_with_transformers(tmp_path: Path, pre: str) -> None:
    file = byte_level_gguf(tmp_path / "m.gguf", pre, **{"ggml.add_bos_token": False})
    ours, theirs = tokenizer_of(file), from_transformers(file)
    # transformers adds GPT-2's own <|endoftext|> to every vocabulary of this kind.
    texts = [text for text in (*TEXTS, "a<think>b</s>") if "<|endoftext|>" not in text]

    assert [ours.encode(text).ids for text in texts] == [
        theirs(text, add_special_tokens=False)["input_ids"] for text in texts
    ]
    assert [
        ours.decode(ours.encode(text).ids, skip_special_tokens=False) for text in texts
    ] == texts


def test_llama_3_cuts_numbers_in_threes_and_qwen_in_digits(tmp_path: Path) -> None:
    cuts = {}
    for pre in ("llama-bpe", "qwen2", "starcoder"):
        tokenizer = tokenizer_of(byte_level_gguf(tmp_path / f"{pre}.gguf", pre))
        assert tokenizer.pre_tokenizer is not None
        cuts[pre] = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("a 12345")]

    assert cuts["llama-bpe"] == ["a", "\u0120", "123", "45"]
    assert cuts["qwen2"] == ["a", "\u0120", *"12345"]
    assert cuts["starcoder"] == ["a", "\u0120", *"12345"]


def test_user_defined_tokens_stay_whole_but_are_not_special(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(byte_level_gguf(tmp_path / "m.gguf", "qwen2"))

    ids = tokenizer.encode("x<think>y").ids

    assert tokenizer.token_to_id("<think>") in ids
    assert tokenizer.decode(ids) == "x<think>y"


@pytest.mark.parametrize(
    ("pre", "flags", "first", "last"),
    [
        ("qwen2", {}, "x", "x"),
        ("qwen2", {"ggml.add_bos_token": True}, "<s>", "x"),
        ("llama-bpe", {}, "<s>", "x"),
        ("llama-bpe", {"ggml.add_bos_token": False}, "x", "x"),
        ("qwen2", {"ggml.add_eos_token": True}, "x", "</s>"),
    ],
)
def test_the_flags_add_the_first_and_the_last_token(
    tmp_path: Path, pre: str, flags: dict[str, bool], first: str, last: str
) -> None:
    tokenizer = tokenizer_of(byte_level_gguf(tmp_path / "m.gguf", pre, **flags))

    assert (tokenizer.encode("x").tokens[0], tokenizer.encode("x").tokens[-1]) == (first, last)
    assert tokenizer.encode("x", add_special_tokens=False).tokens == ["x"]


def sentence_piece_gguf(path: Path, words: Sequence[str], **extra: Any) -> Path:
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = sorted({word[:end] for word in words for end in range(1, len(word) + 1)})
    pieces += sorted({letter for word in words for letter in word} - set(pieces))
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, *pieces]
    scores = [0.0] * 259 + [-float(index) for index in range(len(pieces))]
    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
    values = {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": tokens,
        "ggml.scores": scores,
        "ggml.token_type": types,
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.unknown_token_id": 0,
        **extra,
    }
    return write_gguf(path, tokenizer=values)


WORDS = ("\u2581the", "\u2581theme", "\u2581cat", "s", "\u2581\u2581", "hello", "\u2581caf\u00e9")


def test_a_sentence_piece_vocabulary_agrees_with_transformers(tmp_path: Path) -> None:
    file = sentence_piece_gguf(tmp_path / "m.gguf", WORDS)
    ours, theirs = tokenizer_of(file), from_transformers(file)
    texts = ["the cats  hello", " themes", "caf\u00e9 \u4f60\u597d", "a</s>the", "", "x\n\ny"]

    for text in texts:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


def test_sentence_piece_begins_with_bos_and_a_space_unless_told(tmp_path: Path) -> None:
    plain = tokenizer_of(sentence_piece_gguf(tmp_path / "a.gguf", WORDS))
    bare = tokenizer_of(
        sentence_piece_gguf(
            tmp_path / "b.gguf",
            WORDS,
            **{"ggml.add_bos_token": False, "ggml.add_space_prefix": False},
        )
    )

    assert plain.encode("the").tokens == ["<s>", "\u2581the"]
    assert bare.encode("hello").tokens == ["hello"]
    assert bare.decode(bare.encode(" hello").ids) == " hello"
    assert isinstance(plain.decoder, decoders.Sequence)


def test_unknown_text_falls_back_to_bytes(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(sentence_piece_gguf(tmp_path / "m.gguf", WORDS))

    encoded = tokenizer.encode("the\u4f60", add_special_tokens=False)

    assert encoded.tokens == ["\u2581the", "<0xE4>", "<0xBD>", "<0xA0>"]
    assert tokenizer.decode(encoded.ids) == "the\u4f60"


def test_merges_follow_the_scores() -> None:
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}

    merges = merges_from_scores(vocab, [0, 0, 0, -2.0, -1.0, -3.0])

    assert merges == [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({}, r"has no tokenizer; name one with --tokenizer"),
        ({"ggml.model": "bert", "ggml.tokens": ["a"]}, "kind 'bert'; supported are gpt2, llama"),
    ],
)
def test_other_vocabularies_are_refused(
    tmp_path: Path, tokenizer: dict[str, Any], message: str
) -> None:
    metadata = read_metadata(write_gguf(tmp_path / "m.gguf", tokenizer=tokenizer))

    with pytest.raises(ConfigError, match=message):
        tokenizer_json(metadata)
