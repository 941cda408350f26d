"""Who may call, and with which key."""

from pathlib import Path
from typing import Any

import openai
import pytest

from quire_router.auth import Authenticator, load_keys
from quire_router.config import RouterConfig
from quire_router.errors import AuthenticationError, ConfigError


def test_keys_come_from_flags_and_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# for the web team\nweb\n\n  batch  \n")
    config = RouterConfig(api_key=("one", "two"), api_key_file=str(path))

    keys = load_keys(config, {"QUIRE_API_KEY": "ignored"})

    assert keys == ("one", "two", "web", "batch")


def test_keys_come_from_the_environment_otherwise() -> None:
    assert load_keys(RouterConfig(), {"QUIRE_API_KEY": "a, b"}) == ("a", "b")
    assert load_keys(RouterConfig(), {"QUIRE_API_KEY": ""}) == ()
    assert load_keys(RouterConfig(), {}) == ()


@pytest.mark.parametrize("content", [None, "", "# nothing\n"])
def test_a_key_file_without_keys_must_not_open_the_door(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ConfigError, match="api_key_file"):
        load_keys(RouterConfig(api_key_file=str(path)), {})


@pytest.mark.parametrize(
    "header", [None, b"", b"Bearer", b"Bearer ", b"Bearer kez", b"Basic key", b"key", b"\xff\xff"]
)
def test_wrong_headers_are_refused(header: bytes | None) -> None:
    with pytest.raises(AuthenticationError):
        Authenticator(("key", "other")).check("/v1/models", header)


@pytest.mark.parametrize("header", [b"Bearer key", b"bearer other", b"Bearer  key "])
def test_every_key_opens(header: bytes) -> None:
    Authenticator(("key", "other")).check("/v1/models", header)


async def test_what_costs_needs_a_key_and_probes_do_not(serve_with: Any) -> None:
    served = await serve_with(api_keys=("key",))

    for path in ("/v1/models", "/v1/unknown", "/tokenize", "/detokenize"):
        status, text = await served.get(path)
        assert status == 401, path
        assert "invalid_api_key" in text
    for path in ("/health", "/ready", "/metrics", "/ping", "/version"):
        assert (await served.get(path))[0] == 200, path


async def test_the_official_client_sends_its_key(serve_with: Any) -> None:
    served = await serve_with(api_keys=("key", "second"))
    right, wrong = await served.client(api_key="second"), await served.client(api_key="no")

    assert (await right.models.list()).data
    with pytest.raises(openai.AuthenticationError):
        await wrong.completions.create(model="fake", prompt="hi")
    assert served.script.requests == []
