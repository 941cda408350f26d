"""What is generated and committed must be what its source generates."""

import subprocess
import sys
from pathlib import Path

import pytest

from chart_tools.metric_tables import CATALOGUES, metric_readmes

ROOT = Path(__file__).parents[1]
STUBS = ("engine_pb2.py", "engine_pb2.pyi", "engine_pb2_grpc.py")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stubs")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "engine")]
    command += [f"--{kind}={out}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    subprocess.run([*command, "quire_engine/rpc/engine.proto"], check=True, cwd=ROOT)
    return out / "quire_engine" / "rpc"


@pytest.mark.parametrize("name", STUBS)
def test_grpc_stubs_are_what_the_proto_generates(generated: Path, name: str) -> None:
    committed = ROOT / "engine" / "quire_engine" / "rpc" / name

    assert committed.read_text() == (generated / name).read_text(), "run `make generate`"


@pytest.mark.parametrize("folder", CATALOGUES)
def test_tables_of_metrics_are_what_the_declarations_generate(folder: str) -> None:
    readme = ROOT / folder / "README.md"

    assert dict(metric_readmes(ROOT))[readme] == readme.read_text(), "run `make generate`"


def test_the_lock_names_every_direct_dependency_and_no_index() -> None:
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lock = (ROOT / "requirements.lock").read_text()
    wanted = list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    names = {re.split(r"[\[<>=; ]", item)[0] for item in wanted} - {"quire"}

    assert not {name for name in names if not re.search(rf"^{name}==", lock, re.MULTILINE)}
    assert "://" not in lock
