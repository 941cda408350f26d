"""Request bodies: bytes to a JSON object."""

from typing import Any

import orjson

from quire_router.errors import BadRequestError
from quire_router.openai.fields import shown


def json_object(body: bytes) -> dict[str, Any]:
    """Return the object that a body holds.

    Raises:
        BadRequestError: it is not JSON, or not an object.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        what = "is empty" if not body else f"is not valid JSON: {error}"
        raise BadRequestError(f"the request body {what}") from error
    if not isinstance(value, dict):
        raise BadRequestError(f"the request body must be a JSON object, not {shown(value)}")
    return value
