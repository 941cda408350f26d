import tokenizers
from hypothesis import given, strategies as st

from quire_engine.frontend.tokenizer import Tokenizer
from quire_engine.testing.tokenizer import EOS_TOKEN_ID, VOCAB_SIZE, tokenizer_json


@given(st.text(max_size=40))
def test_token_ids_are_the_bytes_of_the_text(text: str) -> None:
    tokenizer = Tokenizer.from_json(tokenizer_json())

    token_ids = tokenizer.encode(text)

    assert bytes(token_ids) == text.encode()
    assert tokenizer.decode(token_ids) == text


def test_special_tokens_come_after_the_bytes() -> None:
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json())

    assert tokenizer.token_to_id("<|endoftext|>") == EOS_TOKEN_ID
    assert tokenizer.encode("<|im_start|>a<|im_end|>").ids == [257, 97, 258]
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
