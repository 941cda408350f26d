import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fake_hub import FakeHub, Repo
from quire.cli import main
from quire.fetching import MARKERS, FetchConfig, Fetched, fetch, report
from quire_engine.errors import ConfigError

FILES = {"config.json": b"{}", "model.safetensors": b"x" * 100}
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    hub.repos["org/model"] = Repo(files=dict(FILES))
    yield hub
    hub.stop()


@pytest.fixture
def config(tmp_path: Path) -> FetchConfig:
    return FetchConfig(model="org/model", download_dir=str(tmp_path / "cache"))


def test_a_model_is_downloaded_once_and_then_needs_no_hub(
    fake_hub: FakeHub, config: FetchConfig
) -> None:
    first = fetch(config, endpoint=fake_hub.url)
    second = fetch(config, endpoint=NOWHERE)

    assert first == Fetched(first.path, 102, was_there=False)
    assert second == replace(first, was_there=True)
    assert (first.path / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_download_that_was_cut_off_leaves_no_marker(
    fake_hub: FakeHub, config: FetchConfig
) -> None:
    fake_hub.repos["org/model"].status = 500

    with pytest.raises(ConfigError):
        fetch(config, endpoint=fake_hub.url)

    assert config.download_dir is not None
    assert not (Path(config.download_dir) / MARKERS).exists()


def test_a_marker_without_its_files_counts_for_nothing(
    fake_hub: FakeHub, config: FetchConfig
) -> None:
    path = fetch(config, endpoint=fake_hub.url).path
    (path / "model.safetensors").unlink()

    assert fetch(config, endpoint=fake_hub.url).was_there is False


def test_another_revision_is_another_download(fake_hub: FakeHub, config: FetchConfig) -> None:
    fetch(config, endpoint=fake_hub.url)

    assert not fetch(replace(config, revision="v2"), endpoint=fake_hub.url).was_there


@pytest.mark.parametrize("model", ["", "model", "/models/x", "a/b/c"])
def test_what_is_no_name_on_the_hub_is_refused(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fetch", model])

    assert caught.value.code == 2
    assert "MODEL must be OWNER/REPOSITORY" in capsys.readouterr().err


def test_a_report_has_the_size_and_the_config(fake_hub: FakeHub, config: FetchConfig) -> None:
    fake_hub.repos["org/model"].files["config.json"] = b'{"num_hidden_layers": 2}'

    text = report(fetch(config, endpoint=fake_hub.url))

    assert json.loads(text) == {"bytes": 124, "config": {"num_hidden_layers": 2}}


@pytest.mark.parametrize("content", [b"[" * 10, b'{"a": "' + b"x" * 4000 + b'"}'])
def test_a_config_that_is_broken_or_too_large_is_left_out_of_the_report(
    fake_hub: FakeHub, config: FetchConfig, content: bytes
) -> None:
    fake_hub.repos["org/model"].files["config.json"] = content

    text = report(fetch(config, endpoint=fake_hub.url))

    assert list(json.loads(text)) == ["bytes"]
