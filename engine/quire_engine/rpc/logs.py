"""How engines and routers write their log: one line per event, as text or JSON.

What is logged about one request carries its id, and its trace's where there is one:

    logger.warning("request failed", extra=request_fields(request_id, traceparent))
"""

import json
import logging
import sys
import time
from typing import TextIO

from quire_engine.rpc.trace_context import trace_id_of

LOG_FORMATS = ("text", "json")
REQUEST_FIELDS = ("request_id", "trace_id")


def request_fields(request_id: str, traceparent: str = "") -> dict[str, str]:
    """Return the `extra` of a record that is about one request."""
    fields = {"request_id": request_id}
    if trace_id := trace_id_of(traceparent):
        fields["trace_id"] = trace_id
    return fields


class TextFormatter(logging.Formatter):
    """One line per record; only a traceback adds more."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        ids = "".join(f" {key}={value}" for key, value in _ids(record).items())
        # A message may quote what others said; it must not look like a line of ours.
        return (super().formatMessage(record) + ids).replace("\n", "\\n").replace("\r", "\\r")


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, message, and what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_ids(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def formatter_of(format_: str) -> logging.Formatter:
    """Return the formatter of one of LOG_FORMATS."""
    return JsonFormatter() if format_ == "json" else TextFormatter()


def configure_logging(level: str, format_: str) -> None:
    """Send this process's log to stderr. For programs alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter_of(format_))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class Announcer:
    """Tells the user what has happened, whatever the log level: a line, or a record as JSON."""

    def __init__(self, name: str, format_: str, out: TextIO | None = None) -> None:
        self._name = name
        self._json = JsonFormatter() if format_ == "json" else None
        self._out = out

    def __call__(self, line: str) -> None:
        out = sys.stdout if self._out is None else self._out
        if self._json is not None:
            record = logging.LogRecord(self._name, logging.INFO, "", 0, line, None, None)
            line = self._json.format(record)
        out.write(f"{line}\n")
        out.flush()


def _ids(record: logging.LogRecord) -> dict[str, str]:
    return {key: getattr(record, key) for key in REQUEST_FIELDS if getattr(record, key, "")}
