import json
import random
from collections.abc import Sequence

import pytest
import tokenizers
from hypothesis import given, settings, strategies as st

from quire_engine.config import ModelConfig
from quire_engine.errors import ConfigError, InvalidRequestError
from quire_engine.frontend.tokenizer import Tokenizer
from quire_engine.model.source import resolve
from tiny_tokenizers import DECODERS, byte_level_json, sentencepiece_json

SOURCES = {"byte level": byte_level_json()} | {name: sentencepiece_json(name) for name in DECODERS}
OURS = {name: Tokenizer.from_json(text) for name, text in SOURCES.items()}
THEIRS = {name: tokenizers.Tokenizer.from_str(text) for name, text in SOURCES.items()}
names = st.sampled_from(sorted(SOURCES))
token_ids = st.lists(st.integers(0, 300), max_size=12)


def _has_invalid_byte_run(tokenizer: Tokenizer, ids: Sequence[int]) -> bool:
    """Whether a run of byte tokens is no UTF-8: `tokenizers` then replaces all of it."""
    run = b""
    for token_id in [*ids, -1]:
        token = tokenizer.id_to_token(token_id) if token_id >= 0 else "end"
        if token is not None and token.startswith("<0x"):
            run += bytes([int(token[3:5], 16)])
        elif token is not None:
            if "\ufffd" in run.decode("utf-8", "replace"):
                return True
            run = b""
    return False


@settings(max_examples=300)
@given(names, token_ids, st.booleans())
def test_decoding_equals_that_of_tokenizers(name: str, ids: list[int], skips: bool) -> None:
    shown = [i for i in ids if not (skips and i in OURS[name].special_token_ids)]
    if name in ("llama", "strip two", "gemma") and _has_invalid_byte_run(OURS[name], shown):
        return

    text = OURS[name].decode(ids, skip_special_tokens=skips)

    assert text == THEIRS[name].decode(ids, skip_special_tokens=skips)


def test_decoding_equals_that_of_tokenizers_for_the_demo_model() -> None:
    text = resolve(ModelConfig()).load_tokenizer()
    assert text is not None
    ours, theirs = Tokenizer.from_json(text), tokenizers.Tokenizer.from_str(text)
    draw = random.Random(0)

    for skips in (True, False) * 200:
        ids = [draw.randrange(ours.vocab_size + 5) for _ in range(20)]
        assert ours.decode(ids, skip_special_tokens=skips) == theirs.decode(
            ids, skip_special_tokens=skips
        )


def test_valid_characters_of_an_invalid_run_of_byte_tokens_are_kept() -> None:
    tokenizer = OURS["llama"]
    first_byte = tokenizer.token_to_id("<0x00>")
    assert first_byte is not None

    text = tokenizer.decode([first_byte + byte for byte in b"a\xc3\xa9\xff"])

    assert text == "a\N{LATIN SMALL LETTER E WITH ACUTE}\ufffd"


def test_tokens_of_byte_level_bpe_are_their_bytes() -> None:
    tokenizer = OURS["byte level"]

    assert [tokenizer.pieces[byte] for byte in range(256)] == [bytes([b]) for b in range(256)]
    assert tokenizer.pieces[258] == b"\xf0\x9f"


def test_tokens_of_sentencepiece_are_their_bytes() -> None:
    tokenizer = OURS["llama"]

    def piece(token: str) -> bytes:
        token_id = tokenizer.token_to_id(token)
        assert token_id is not None
        return tokenizer.pieces[token_id]

    assert piece("<0x0A>") == b"\n"
    assert piece("\u2581Hello") == b" Hello"
    assert piece("</s>") == b"</s>"


def test_special_tokens_have_bytes_but_are_not_shown_when_skipped() -> None:
    tokenizer = OURS["byte level"]
    token_id = tokenizer.token_to_id("<|im_end|>")
    assert token_id is not None

    assert token_id in tokenizer.special_token_ids
    assert tokenizer.pieces[token_id] == b"<|im_end|>"
    assert tokenizer.pieces_without_special[token_id] == b""


def test_an_id_beyond_the_vocabulary_has_no_bytes() -> None:
    assert OURS["byte level"].pieces[100_000] == b""


def test_truncation_in_the_file_is_switched_off() -> None:
    assert len(OURS["byte level"].encode("0123456789")) == 10


def test_vocabulary_counts_added_tokens() -> None:
    document = json.loads(SOURCES["byte level"])

    expected = len(document["model"]["vocab"]) + len(document["added_tokens"])

    assert OURS["byte level"].vocab_size == len(OURS["byte level"]) == expected


def test_special_tokens_in_text_become_one_token() -> None:
    tokenizer = OURS["byte level"]

    ids = tokenizer.encode("a<|im_end|>")

    assert ids == [ord("a"), tokenizer.token_to_id("<|im_end|>")]


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"not valid Unicode: surrogates .* character 2"):
        OURS["byte level"].encode("ab\ud800")


def test_text_that_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="the tokenizer cannot be loaded"):
        Tokenizer.from_json("{}")


def test_a_decoder_that_cannot_be_streamed_is_refused_by_name() -> None:
    document = json.loads(SOURCES["llama"])
    document["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}

    with pytest.raises(ConfigError, match="type 'WordPiece'; known are ByteLevel"):
        Tokenizer.from_json(json.dumps(document))
