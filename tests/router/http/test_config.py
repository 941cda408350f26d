"""Configuration is checked before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from quire_router.config import RouterConfig
from quire_router.errors import ConfigError
from quire_router.prompts import PromptRenderer
from quire_router.server import run


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"port": 70000}, "port must be in .0, 65535., not 70000"),
        ({"max_body_bytes": 0}, "max_body_bytes must be at least 1, not 0"),
        ({"shutdown_timeout": -1}, "shutdown_timeout must be at least 0"),
        ({"tokenizer_threads": 0}, "tokenizer_threads must be in .1, 256., not 0"),
        ({"log_level": "loud"}, "log_level must be one of .*; not 'loud'"),
    ],
)
def test_values_out_of_range_are_named_with_their_limit(
    options: dict[str, Any], needle: str
) -> None:
    with pytest.raises(ConfigError, match=needle):
        RouterConfig(**options)


def test_a_router_needs_replicas() -> None:
    with pytest.raises(ConfigError, match="--replicas"):
        run(RouterConfig())


def test_a_chat_template_is_a_file_or_the_template_itself(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}")

    PromptRenderer(RouterConfig(chat_template=str(tmp_path / "chat.jinja")))
    PromptRenderer(RouterConfig(chat_template="{{ messages }}"))
    with pytest.raises(ConfigError, match=r"cannot read chat_template .*missing.jinja"):
        PromptRenderer(RouterConfig(chat_template=str(tmp_path / "missing.jinja")))
