"""Text to token ids, and token ids to the bytes that they stand for."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import tokenizers

from quire_engine.errors import ConfigError, InvalidRequestError
from quire_engine.frontend.token_bytes import DecoderRules, decoder_rules


class Pieces(dict[int, bytes]):
    """Bytes of each token id, looked up once and kept. Skipped and unknown ids have none."""

    def __init__(
        self, id_to_token: Callable[[int], str | None], rules: DecoderRules, skipped: frozenset[int]
    ) -> None:
        super().__init__()
        self._id_to_token = id_to_token
        self._skipped = skipped
        self.rules = rules

    def __missing__(self, token_id: int) -> bytes:
        token = self._text(token_id)
        piece = self[token_id] = b"" if token is None else self.rules.piece(token)
        return piece

    def first(self, token_id: int) -> bytes | None:
        """Return the bytes of a token that starts the text; None if it is not shown at all."""
        token = self._text(token_id)
        if token is None:
            return None
        return (self.rules.first_piece or self.rules.piece)(token)

    def _text(self, token_id: int) -> str | None:
        return None if token_id in self._skipped else self._id_to_token(token_id)


class Tokenizer:
    """A model's tokenizer. Encoding releases the interpreter lock; usable from threads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Wrap `tokenizer`; its truncation and padding are switched off.

        Raises:
            ConfigError: its decoder is of a kind that cannot be streamed.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special_token_ids = frozenset(
            token_id for token_id, token in added.items() if token.special
        )
        # What a decoder would be pickled as is its section of tokenizer.json; writing the whole
        # file to get it takes a quarter of a second.
        decoder = tokenizer.decoder
        rules = decoder_rules(None if decoder is None else json.loads(decoder.__getstate__()))
        look_up = tokenizer.id_to_token
        self.pieces = Pieces(look_up, rules, frozenset())
        self.pieces_without_special = Pieces(look_up, rules, self.special_token_ids)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Load the text of a tokenizer.json.

        Raises:
            ConfigError: it is not a tokenizer.json, or its decoder cannot be streamed.
        """
        try:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises nothing more exact
            raise ConfigError(f"the tokenizer cannot be loaded: {error}") from error
        return cls(tokenizer)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's vocabulary may be padded beyond."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of `text`.

        Raises:
            InvalidRequestError: the text is not Unicode (a lone surrogate).
        """
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """Return the token ids of each text, encoded in parallel."""
        for text in texts:
            _check_unicode(text)
        encodings = self._tokenizer.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `token_ids`; bytes that are no UTF-8 become U+FFFD."""
        pieces = self.visible_pieces(skip_special_tokens=skip_special_tokens)
        start = TextStart(pieces)
        data = bytearray()
        rest = iter(token_ids)
        while not start.is_over and (token_id := next(rest, None)) is not None:
            data += start.push(token_id)
        data += b"".join(map(pieces.__getitem__, rest))
        return data.decode("utf-8", "replace")

    def visible_pieces(self, *, skip_special_tokens: bool) -> Pieces:
        """Return the bytes of tokens as they are shown, special tokens or not."""
        return self.pieces_without_special if skip_special_tokens else self.pieces

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        return self._tokenizer.id_to_token(token_id)

    def get_vocab(self) -> Mapping[str, int]:
        return self._tokenizer.get_vocab(with_added_tokens=True)


class TextStart:
    """The start of a text, where a token's bytes depend on what precedes it."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._num_strip = pieces.rules.num_strip
        self._is_first = True
        self.is_over = not pieces.rules.start_differs
        """From here on every token stands for its bytes."""

    def push(self, token_id: int) -> bytes:
        """Return the bytes of the next token."""
        piece = self._pieces.first(token_id) if self._is_first else self._pieces[token_id]
        if piece is None:
            return b""
        self._is_first = False
        while self._num_strip and piece.startswith(b" "):
            piece = piece[1:]
            self._num_strip -= 1
        self.is_over = not self._num_strip or bool(piece)
        return piece


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"the prompt is not valid Unicode: {error.reason} at character {error.start}", "prompt"
        ) from error
