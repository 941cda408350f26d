import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from quire_engine.errors import ConfigError
from quire_engine.model.gguf_metadata import is_first_shard, shard_names
from quire_engine.model.hub import Hub

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    error_code: str = ""


class FakeHub:
    """Speaks as much of the hub's protocol as downloading a model needs, on loopback."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.served: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._respond(body=True)

            def do_HEAD(self) -> None:
                self._respond(body=False)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (inherited)
                pass

            def _respond(self, *, body: bool) -> None:
                status, content, headers = hub.answer(urlsplit(self.path).path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        parts = path.strip("/").removeprefix("api/models/").split("/")
        repo = self.repos.get("/".join(parts[:2]), Repo(status=404, error_code="RepoNotFound"))
        if repo.status != 200:
            return repo.status, b"{}", {"X-Error-Code": repo.error_code}
        if "/resolve/" in path:
            name = "/".join(parts[4:])
            self.served.append(name)
            return 200, repo.files[name], {"ETag": f'"{hash(name):x}"', "X-Repo-Commit": SHA}
        if "tree" in parts:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{hash(name):x}"}
                for name, data in repo.files.items()
            ]
            return 200, json.dumps(entries).encode(), {}
        siblings = [{"rfilename": name} for name in repo.files]
        info = {"id": "/".join(parts[:2]), "sha": SHA, "siblings": siblings}
        return 200, json.dumps(info).encode(), {}

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


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
