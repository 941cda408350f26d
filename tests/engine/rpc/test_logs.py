import io
import json
import logging
from typing import Any

import pytest
from hypothesis import given, strategies as st

from quire_engine.rpc.logs import Announcer, formatter_of, request_fields
from quire_engine.rpc.request_id import is_request_id

PARENT = f"00-{'a1' * 16}-{'b2' * 8}-01"


def line(format_: str, message: str, *args: Any, **extra: str) -> str:
    record = logging.LogRecord("quire.test", logging.WARNING, "", 0, message, args, None)
    record.created, record.msecs = 1_700_000_000.25, 250
    record.__dict__.update(extra)
    return formatter_of(format_).format(record)


def test_json_has_the_time_and_what_the_record_is_about() -> None:
    entry = json.loads(line("json", "lost n=%d", 3, **request_fields("me", PARENT)))

    assert entry == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "quire.test",
        "message": "lost n=3",
        "request_id": "me",
        "trace_id": "a1" * 16,
    }


def test_text_ends_in_the_same_ids() -> None:
    assert line("text", "lost n=%d", 3, **request_fields("me", PARENT)).endswith(
        f"WARNING quire.test lost n=3 request_id=me trace_id={'a1' * 16}"
    )
    assert line("text", "lost").endswith("WARNING quire.test lost")
    assert request_fields("me") == {"request_id": "me"}


@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_message_cannot_pass_for_a_second_line(format_: str) -> None:
    written = line(format_, "said %s", "this\r\n2023-01-01 ERROR quire that")

    assert len(written.splitlines()) == 1


@pytest.mark.parametrize("format_", ["text", "json"])
def test_tracebacks_are_kept(format_: str) -> None:
    try:
        raise RuntimeError("the cause")
    except RuntimeError as error:
        info = type(error), error, error.__traceback__
    record = logging.LogRecord("quire", logging.ERROR, "", 0, "failed", (), info)

    written = formatter_of(format_).format(record)

    assert "RuntimeError: the cause" in written
    if format_ == "json":
        assert "Traceback" in json.loads(written)["exception"]


def test_announcements_have_the_form_of_the_log() -> None:
    text, as_json = io.StringIO(), io.StringIO()

    Announcer("quire_engine", "text", text)("ready: fake")
    Announcer("quire_engine", "json", as_json)("ready: fake")

    assert text.getvalue() == "ready: fake\n"
    entry = json.loads(as_json.getvalue())
    assert (entry["logger"], entry["message"]) == ("quire_engine", "ready: fake")


@given(st.text(max_size=200))
def test_a_request_id_never_breaks_a_line_or_a_header(text: str) -> None:
    if is_request_id(text):
        assert len(text) <= 128
        assert text.isascii()
        assert text.split() == [text]
        assert text.isprintable()


@pytest.mark.parametrize("text", ["", "a b", "a\n", "\x00", "\u00e9", "x" * 129])
def test_what_is_no_request_id(text: str) -> None:
    assert not is_request_id(text)
