from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_hub import FakeHub, Repo
from quire_engine.errors import ConfigError
from quire_engine.model.gguf_metadata import is_first_shard, shard_names
from quire_engine.model.hub import Hub


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    yield hub
    hub.stop()


@pytest.fixture
def hub(fake_hub: FakeHub, tmp_path: Path) -> Hub:
    return Hub(endpoint=fake_hub.url, cache_dir=str(tmp_path / "cache"), token="hf_test")


def files(*names: str) -> Repo:
    return Repo(files={name: name.encode() for name in names})


def test_a_safetensors_model_comes_with_its_text_files_and_nothing_else(
    fake_hub: FakeHub, hub: Hub
) -> None:
    wanted = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}
    fake_hub.repos["org/model"] = files(
        *wanted, "README.md", "pytorch_model.bin", "original/model.safetensors", "x.gguf"
    )

    folder = hub.download("org/model", with_weights=True)

    assert {file.name for file in folder.iterdir()} == wanted
    assert (folder / "config.json").read_text() == "config.json"


def test_dummy_weights_download_no_weights(fake_hub: FakeHub, hub: Hub) -> None:
    fake_hub.repos["org/model"] = files("config.json", "model.safetensors")

    folder = hub.download("org/model", with_weights=False)

    assert [file.name for file in folder.iterdir()] == ["config.json"]


def test_a_second_download_serves_from_the_cache(fake_hub: FakeHub, hub: Hub) -> None:
    fake_hub.repos["org/model"] = files("config.json", "model.safetensors")
    first = hub.download("org/model", with_weights=True)
    fake_hub.served.clear()

    assert hub.download("org/model", with_weights=True) == first
    assert "model.safetensors" not in fake_hub.served


def test_an_unreachable_hub_leaves_the_cache_even_if_only_parts_were_downloaded(
    fake_hub: FakeHub, hub: Hub
) -> None:
    fake_hub.repos["org/model"] = files("config.json", "model.safetensors", "README.md")
    first = hub.download("org/model", with_weights=True)
    unreachable = Hub(endpoint="http://127.0.0.1:9", cache_dir=hub.cache_dir)

    assert unreachable.download("org/model", with_weights=True) == first


def test_an_unreachable_hub_and_an_empty_cache_fail_with_advice(tmp_path: Path) -> None:
    unreachable = Hub(endpoint="http://127.0.0.1:9", cache_dir=str(tmp_path))

    with pytest.raises(ConfigError, match=r"org/model is not in the local cache"):
        unreachable.download("org/model", with_weights=True)


def test_the_only_gguf_file_of_a_repository_is_taken(fake_hub: FakeHub, hub: Hub) -> None:
    fake_hub.repos["org/model"] = files("model-Q4.gguf", "README.md")

    assert hub.download("org/model", with_weights=True).name == "model-Q4.gguf"


def test_one_of_several_gguf_files_must_be_named(fake_hub: FakeHub, hub: Hub) -> None:
    fake_hub.repos["org/model"] = files("a-Q4.gguf", "a-Q8.gguf", "b/c.gguf")

    with pytest.raises(ConfigError, match=r"org/model:a-Q4\.gguf; there are: a-Q4.gguf, a-Q8.gguf"):
        hub.download("org/model", with_weights=True)
    assert hub.download("org/model:a-Q8.gguf", with_weights=True).name == "a-Q8.gguf"
    assert hub.download("org/model:b/c.gguf", with_weights=True).name == "c.gguf"
    with pytest.raises(ConfigError, match=r"has no file z\.gguf; its GGUF files are: a-Q4\.gguf"):
        hub.download("org/model:z.gguf", with_weights=True)


def test_all_shards_of_a_gguf_model_are_downloaded(fake_hub: FakeHub, hub: Hub) -> None:
    shards = shard_names("m-00001-of-00003.gguf")
    fake_hub.repos["org/model"] = files(*shards)

    first = hub.download("org/model", with_weights=True)

    assert first.name == shards[0]
    assert {file.name for file in first.parent.iterdir()} == set(shards)


def test_pickled_weights_are_refused_with_advice(fake_hub: FakeHub, hub: Hub) -> None:
    fake_hub.repos["org/model"] = files("config.json", "pytorch_model.bin")

    with pytest.raises(ConfigError, match=r"org/model has only \*\.bin weights.*safetensors"):
        hub.download("org/model", with_weights=True)


def test_a_repository_without_weights_is_refused(fake_hub: FakeHub, hub: Hub) -> None:
    fake_hub.repos["org/model"] = files("README.md")

    with pytest.raises(ConfigError, match="is it a language model"):
        hub.download("org/model", with_weights=True)


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        (Repo(status=404, error_code="RepoNotFound"), "neither a local path nor a model"),
        (Repo(status=401, error_code="RepoNotFound"), "neither a local path nor a model"),
        (Repo(status=403, error_code="GatedRepo"), "is gated: accept its terms"),
        (Repo(status=404, error_code="RevisionNotFound"), "no such revision"),
        (Repo(status=400), "downloading org/model failed"),
    ],
)
def test_refusals_name_the_model_and_the_next_step(
    fake_hub: FakeHub, hub: Hub, repo: Repo, message: str
) -> None:
    fake_hub.repos["org/model"] = repo

    with pytest.raises(ConfigError, match=message) as caught:
        hub.download("org/model", with_weights=True)
    assert "org/model" in str(caught.value)


@pytest.mark.parametrize("name", ["bad name!", "-x/y", "a/b..c--d"])
def test_an_impossible_name_is_refused_without_asking(hub: Hub, name: str) -> None:
    with pytest.raises(ConfigError, match="neither a local path nor a model on the hub"):
        hub.download(name, with_weights=True)


def test_shard_names() -> None:
    assert shard_names("model.gguf") == ["model.gguf"]
    assert shard_names("a-of-b.gguf") == ["a-of-b.gguf"]
    assert shard_names("m-00002-of-00002.gguf") == [
        "m-00001-of-00002.gguf",
        "m-00002-of-00002.gguf",
    ]
    assert is_first_shard("m-00001-of-00002.gguf")
    assert not is_first_shard("m-00002-of-00002.gguf")
