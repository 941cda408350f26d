"""Token ids to text, as they come.

The text given out never splits a character: bytes that may still become one are kept back. Joined,
it is the text that decoding prompt and completion at once has beyond the prompt's own text, however
the tokens were split between calls; a character that the prompt begins belongs to the completion.
Each token costs the same, however long the text is.
"""

from codecs import getincrementaldecoder
from collections.abc import Sequence

from quire_engine.frontend.tokenizer import Pieces, TextStart, Tokenizer

_MAX_PENDING_BYTES = 3
"""A character has at most four bytes, so at most three can be waiting for the last."""

_Utf8Decoder = getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one completion."""

    __slots__ = ("_decode", "_pieces", "_start", "_unfinished")

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._pieces = tokenizer.visible_pieces(skip_special_tokens=skip_special_tokens)
        self._start = _start_after(prompt_token_ids, self._pieces)
        decoder = _Utf8Decoder("replace")
        decoder.decode(_last_bytes(prompt_token_ids, self._pieces))
        self._decode = decoder.decode
        # The decoder holds the bytes of a character that the prompt ends within. Should it never
        # be completed, its replacement is part of the prompt's text, not of ours. The two bytes
        # of half a surrogate pair are held too; they get a replacement each.
        self._unfinished = decoder.getstate()[0].decode("utf-8", "replace")

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that `token_ids` add, but for a character that they leave unfinished."""
        if self._start is not None:
            return self._cut(self._decode(self._first_bytes(token_ids, self._start)))
        text = self._decode(b"".join(map(self._pieces.__getitem__, token_ids)))
        return self._cut(text) if self._unfinished else text

    def finish(self) -> str:
        """Return the replacement of a character that was left unfinished, or nothing."""
        return self._cut(self._decode(b"", True))

    def _first_bytes(self, token_ids: Sequence[int], start: TextStart) -> bytes:
        data = bytearray()
        for token_id in token_ids:
            data += self._pieces[token_id] if start.is_over else start.push(token_id)
        if start.is_over:
            self._start = None
        return bytes(data)

    def _cut(self, text: str) -> str:
        if not text:
            return text
        unfinished, self._unfinished = self._unfinished, ""
        return text.removeprefix(unfinished)


def _start_after(prompt_token_ids: Sequence[int], pieces: Pieces) -> TextStart | None:
    """Return the state of the text's start after the prompt; None once it is over."""
    start = TextStart(pieces)
    for token_id in prompt_token_ids:
        if start.is_over:
            return None
        start.push(token_id)
    return None if start.is_over else start


def _last_bytes(prompt_token_ids: Sequence[int], pieces: Pieces) -> bytes:
    """Return at least the prompt's last bytes that can belong to an unfinished character."""
    tail = b""
    for token_id in reversed(prompt_token_ids):
        if len(tail) >= _MAX_PENDING_BYTES:
            break
        tail = pieces[token_id] + tail
    return tail
