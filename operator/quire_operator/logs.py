"""Log lines of the operator process: text for people, JSON for collectors."""

import json
import logging
import sys
import time
from typing import Literal


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logs(level: str, format_: Literal["text", "json"]) -> None:
    """Log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if format_ == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level != "debug":
        # kopf's life-cycle is an implementation detail of ours, and logged by `front`.
        logging.getLogger("kopf").setLevel(logging.WARNING)
        # Warns that a thread cannot catch signals, which is not its job here.
        logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
        # Its INFO says every few seconds who leads.
        logging.getLogger("kubernetes.aio.leaderelection").setLevel(logging.WARNING)
