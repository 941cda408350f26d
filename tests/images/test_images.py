"""The images, built from their Dockerfiles and run as their own user."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_builder import (
    ENGINE,
    OPERATOR,
    RECIPES,
    ROOT,
    ROUTER,
    Container,
    ImageBuilder,
    Recipe,
)

# The first build of the engine's image installs 6 GB.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SERVE_AND_ASK = """
import subprocess, sys, time
command, targets = sys.argv[1].split(), sys.argv[2:]
server = subprocess.Popen(command)
try:
    deadline = time.monotonic() + 120
    for target in targets:
        while subprocess.run(["quire", "health", target], capture_output=True).returncode != 0:
            assert server.poll() is None, f"{command} ended with {server.returncode}"
            assert time.monotonic() < deadline, f"{target} is not healthy"
            time.sleep(0.2)
finally:
    server.terminate()
print("ended with", server.wait(60))
"""


@pytest.fixture(params=RECIPES, ids=lambda recipe: recipe.name)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    chosen: Recipe = request.param
    return chosen


@pytest.fixture
def engine(builder: ImageBuilder, images: dict[str, str]) -> Iterator[Container]:
    with builder.container(images[ENGINE.name]) as container:
        yield container


@pytest.fixture
def router(builder: ImageBuilder, images: dict[str, str]) -> Iterator[Container]:
    with builder.container(images[ROUTER.name]) as container:
        yield container


@pytest.fixture
def operator(builder: ImageBuilder, images: dict[str, str]) -> Iterator[Container]:
    with builder.container(images[OPERATOR.name]) as container:
        yield container


def test_every_image_says_what_it_is_and_runs_as_nobody(
    builder: ImageBuilder, images: dict[str, str], recipe: Recipe
) -> None:
    config = builder.inspect(images[recipe.name])["Docker"]["config"]
    assert config["User"] == "65532:65532"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][:3] == ["CMD", "quire", "health"]
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
    assert labels["title"] == recipe.name
    assert labels["version"] == "0.1.0"
    assert labels["licenses"] == "Apache-2.0"


def test_every_image_holds_the_locked_versions_and_no_tools_of_the_build(
    builder: ImageBuilder, images: dict[str, str], recipe: Recipe
) -> None:
    with builder.container(images[recipe.name]) as container:
        own = container.run("cat", "/usr/local/share/quire/requirements.lock")
        installed = container.run("python", "-m", "pip", "list", "--format=freeze")

    pins = set(re.findall(r"^([\w.-]+==[\w.]+)", own, re.MULTILINE))
    lock = (ROOT / "requirements.lock").read_text()
    assert pins
    assert [pin for pin in pins if not re.search(rf"^{re.escape(pin)}\b", lock, re.MULTILINE)] == []
    names = {line.partition("==")[0].lower().replace("_", "-") for line in installed.split()}
    assert {pin.partition("==")[0] for pin in pins} | {"quire"} <= names
    assert not names & {"uv", "hatchling", "pytest", "mypy"}


def test_small_images_stay_small(builder: ImageBuilder, images: dict[str, str]) -> None:
    for small in (OPERATOR, ROUTER):
        with builder.container(images[small.name]) as container:
            installed = container.run("python", "-m", "pip", "list", "--format=freeze")
        assert not {"torch", "triton"} & set(re.findall(r"^(\w+)==", installed, re.MULTILINE))
        assert builder.size_bytes(images[small.name]) < 600e6


def test_the_engine_serves_the_demo_model_as_its_own_user(engine: Container) -> None:
    command = "quire engine --device cpu --host 127.0.0.1 --port 50951 --metrics-port 50952"
    targets = ("127.0.0.1:50951", "http://127.0.0.1:50952/metrics")

    answer = engine.run("python", "-c", SERVE_AND_ASK, command, *targets)

    assert "ended with 0" in answer


def test_the_engine_keeps_what_it_writes_below_cache(engine: Container) -> None:
    answer = engine.run(
        *("sh", "-c", "id -u; touch /cache/probe $HOME/probe && gcc --version && env"),
    )

    assert answer.startswith("65532\n")
    variables = dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)
    for name in ("HF_HOME", "TRITON_CACHE_DIR", "XDG_CACHE_HOME"):
        assert variables[name].startswith("/cache")


def test_triton_can_compile_in_the_engines_image(engine: Container) -> None:
    # What Triton does at run time: a C extension for Python, by the image's own compiler.
    code = (
        "from pathlib import Path; from triton.runtime.build import _build; "
        "Path('/tmp/m.c').write_text('#include <Python.h>\\n'); "
        "print(_build('m', '/tmp/m.c', '/tmp', [], [], [], []))"
    )

    assert "/tmp/m" in engine.run("python", "-c", code)


def test_the_router_serves_and_writes_nothing(router: Container) -> None:
    command = "quire router --host 127.0.0.1 --port 50953 --replicas 127.0.0.1:50999"

    answer = run_and_list_writes(router, command, "http://127.0.0.1:50953/health")

    assert answer == []


def test_the_operator_explains_itself(operator: Container) -> None:
    assert "--watch-namespaces" in operator.run("python", "-m", "quire_operator", "--help")


def run_and_list_writes(container: Container, command: str, target: str) -> list[str]:
    with container.files() as root:
        began_at = time.time()
        answer = container.run("python", "-c", SERVE_AND_ASK, command, target)
        assert "ended with 0" in answer
        written = [
            path.relative_to(root)
            for path in root.rglob("*")
            if path.is_file() and path.lstat().st_mtime > began_at
        ]
    # What buildah itself puts into a container that it runs.
    own = {"etc/hosts", "etc/hostname", "etc/resolv.conf", "run/.containerenv"}
    return [str(path) for path in written if str(path) not in own]


def test_a_change_of_the_code_leaves_the_layer_of_the_dependencies(
    builder: ImageBuilder, images: dict[str, str], tmp_path: Path
) -> None:
    folders = ("engine", "operator", "router")
    for name in folders:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml", "requirements.lock", ".dockerignore"):
        shutil.copy2(ROOT / name, tmp_path)
    shutil.copy2(ROOT / OPERATOR.dockerfile, tmp_path)
    with (tmp_path / "operator" / "quire_operator" / "__init__.py").open("a") as module:
        module.write("CHANGED = True\n")
    with (tmp_path / "pyproject.toml").open("a") as project:
        project.write("\n# A comment changes nothing that is installed.\n")

    before = layers(builder, images[OPERATOR.name])
    after = layers(builder, builder.build(OPERATOR, context=tmp_path, tag="localhost/changed:1"))

    assert len(before) == len(after)
    changed = [
        number for number, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]
    ]
    assert changed == [len(before) - 1]


def layers(builder: ImageBuilder, image: str) -> list[str]:
    found: list[str] = builder.inspect(image)["OCIv1"]["rootfs"]["diff_ids"]
    return found
