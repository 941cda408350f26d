"""What a client may call its request: it is sent back, and written into logs and traces."""

import re

MAX_REQUEST_ID_CHARS = 128
_REQUEST_ID = re.compile(rf"[!-~]{{1,{MAX_REQUEST_ID_CHARS}}}")


def is_request_id(text: str) -> bool:
    """Whether it is 1 to 128 printable ASCII characters without a space.

    Nothing else could break a header, or pass for something else in a line of a log.
    """
    return _REQUEST_ID.fullmatch(text) is not None
