"""Flags of `quire top`."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from quire_engine.config import option
from quire_engine.errors import ConfigError

DEFAULT_URL = "http://localhost:8000"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopConfig:
    """Which router to look at, and how."""

    url: str = option(DEFAULT_URL, "address of the router")
    api_key: str | None = option(None, "key to send; default: QUIRE_API_KEY or OPENAI_API_KEY")
    once: bool = option(False, "print the replicas once and end")
    json: bool = option(False, "with --once: print what GET /v1/replicas answers")

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url must start with http:// or https://, not {self.url!r}")
        if not _is_address(self.url):
            raise ConfigError(
                f"url must be http://HOST:PORT with a port to 65535, not {self.url!r}"
            )
        if self.json and not self.once:
            raise ConfigError("--json goes with --once")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0  # reading a port checks it
    except ValueError:
        return False
