import time
import timeit
from itertools import chain

import pytest
from hypothesis import given, settings, strategies as st

from quire_engine.frontend.detokenizer import Detokenizer
from quire_engine.frontend.tokenizer import Tokenizer
from tiny_tokenizers import DECODERS, byte_level_json, sentencepiece_json

TOKENIZERS = {"byte level": Tokenizer.from_json(byte_level_json())} | {
    name: Tokenizer.from_json(sentencepiece_json(name)) for name in DECODERS
}
tokenizers = st.sampled_from(sorted(TOKENIZERS)).map(TOKENIZERS.__getitem__)
# Lead and continuation bytes are drawn often, so that characters break in every place.
token_ids = st.one_of(st.integers(0, 300), st.sampled_from([0xC3, 0xA9, 0xF0, 0x9F, 0x98, 0x80]))
chunks = st.lists(st.lists(token_ids, max_size=4), max_size=8)
GRIN = "\N{GRINNING FACE}"


def _stream(detokenizer: Detokenizer, parts: list[list[int]]) -> list[str]:
    return [*(detokenizer.push(part) for part in parts), detokenizer.finish()]


@settings(max_examples=250)
@given(tokenizers, chunks, st.booleans())
def test_the_stream_joined_is_the_text_decoded_at_once(
    tokenizer: Tokenizer, parts: list[list[int]], skips: bool
) -> None:
    whole = tokenizer.decode([*chain(*parts)], skip_special_tokens=skips)

    texts = _stream(Detokenizer(tokenizer, skip_special_tokens=skips), parts)

    assert "".join(texts) == whole


@settings(max_examples=250)
@given(tokenizers, st.lists(token_ids, max_size=6), chunks, st.booleans())
def test_after_a_prompt_the_stream_is_what_the_whole_has_beyond_the_prompt(
    tokenizer: Tokenizer, prompt: list[int], parts: list[list[int]], skips: bool
) -> None:
    before = tokenizer.decode(prompt, skip_special_tokens=skips)
    whole = tokenizer.decode([*prompt, *chain(*parts)], skip_special_tokens=skips)

    texts = _stream(Detokenizer(tokenizer, prompt, skip_special_tokens=skips), parts)

    # A character that the prompt begins and the completion ends belongs to the completion.
    num_shared = len(before) if whole.startswith(before) else len(before) - 1
    assert "".join(texts) == whole[num_shared:]


@settings(max_examples=300)
@given(st.text(max_size=8), st.data())
def test_valid_text_never_shows_a_replacement_character_on_the_way(
    text: str, data: st.DataObject
) -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = list(text.encode())
    cut = data.draw(st.integers(0, len(ids)))
    detokenizer = Detokenizer(tokenizer, ids[:cut])

    texts = [detokenizer.push([token_id]) for token_id in ids[cut:]]

    assert all("\ufffd" not in each for each in texts) or "\ufffd" in text
    assert text.endswith("".join(texts))


def test_an_unfinished_character_is_kept_back_and_replaced_only_at_the_end() -> None:
    detokenizer = Detokenizer(TOKENIZERS["byte level"])

    texts = [detokenizer.push([byte]) for byte in b"a\xf0\x9f\x98"]

    assert texts == ["a", "", "", ""]
    assert detokenizer.finish() == "\ufffd"


def test_a_character_begun_by_the_prompt_is_given_out_once_whole() -> None:
    first, second = GRIN.encode()[:2], GRIN.encode()[2:]
    detokenizer = Detokenizer(TOKENIZERS["byte level"], list(b"x" + first))

    assert detokenizer.push(list(second)) == GRIN


def test_a_character_begun_by_the_prompt_and_never_ended_is_not_ours() -> None:
    detokenizer = Detokenizer(TOKENIZERS["byte level"], list(b"x\xf0\x9f"))

    assert detokenizer.push(list(b"abc")) == "abc"


@pytest.mark.parametrize("completion", [b"", b"abc", b"\x80abc", b"\xf0\x9f\x98\x80"])
@pytest.mark.parametrize("begun", [b"\xc3", b"\xe4\xb8", b"\xed\xa0", b"\xed\xbf", b"\xf0\x9f\x98"])
def test_whatever_a_prompt_ends_within_is_cut_from_what_follows(
    begun: bytes, completion: bytes
) -> None:
    tokenizer, prompt, ids = TOKENIZERS["byte level"], [*b"x", *begun], list(completion)
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *ids])

    texts = _stream(Detokenizer(tokenizer, prompt), [ids])

    num_shared = len(before) if whole.startswith(before) else len(before) - 1
    assert "".join(texts) == whole[num_shared:]


@pytest.mark.parametrize(
    ("prompt", "text"), [([], "Hello"), (["<s>"], "Hello"), (["Hello"], " Hello")]
)
def test_the_first_token_keeps_its_space_only_after_a_visible_prompt(
    prompt: list[str], text: str
) -> None:
    tokenizer = TOKENIZERS["llama"]
    token_id = tokenizer.token_to_id("\u2581Hello")
    prompt_ids = [tokenizer.token_to_id(token) for token in prompt]
    assert token_id is not None

    detokenizer = Detokenizer(tokenizer, [each for each in prompt_ids if each is not None])

    assert detokenizer.push([token_id]) == text


def test_a_late_token_costs_no_more_than_an_early_one() -> None:
    detokenizer = Detokenizer(TOKENIZERS["llama"], [300, 301])
    ids = list(range(4, 300)) * 4

    def push_all() -> None:
        for token_id in ids:
            detokenizer.push((token_id,))

    def cost_s() -> float:
        return min(timeit.repeat(push_all, timer=time.thread_time, number=1, repeat=3))

    early = cost_s()
    for _ in range(100):
        detokenizer.push(ids)
    late = cost_s()

    assert late < 5 * early + 0.01
