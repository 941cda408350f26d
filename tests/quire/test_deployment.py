"""What `quire serve` gives to each of its engines."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from quire.commands import serve
from quire.deployment import Deployment, visible_gpus


def deployment(**options: Any) -> Deployment:
    defaults: dict[str, Any] = {
        "num_replicas": 2,
        "host": "",
        "port": 8000,
        "socket_dir": Path("/run"),
        "router_arguments": (),
        "engine_arguments": (),
    }
    return Deployment(**defaults | options)


def test_each_engine_gets_gpus_of_its_own() -> None:
    two_each = deployment(gpus_per_engine=2, gpus=("0", "1", "GPU-a", "GPU-b", "7"))

    given = [two_each.engine_environment(number, {"OMP_NUM_THREADS": "3"}) for number in range(2)]

    assert given == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}]


def test_engines_that_are_more_than_the_gpus_share_them() -> None:
    assert deployment(gpus=("0",)).engine_environment(1, {"OMP_NUM_THREADS": "3"}) == {}


def test_an_engine_alone_has_the_whole_machine() -> None:
    assert deployment(num_replicas=1, gpus=("0", "1")).engine_environment(0, {}) == {}


def test_gpus_are_those_that_the_environment_names_or_else_the_devices(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()

    assert visible_gpus({}, tmp_path) == ("0", "1")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2, GPU-x"}, tmp_path) == ("2", "GPU-x")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == ()


def test_replicas_that_need_more_gpus_than_there_are_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    parser = serve.make_parser("quire serve")
    namespace = parser.parse_args(["--replicas", "2", "--tensor-parallel-size", "2"])
    assert isinstance(namespace, argparse.Namespace)

    with pytest.raises(SystemExit):
        serve.check(parser, namespace)

    assert "--replicas 2 with --tensor-parallel-size 2 needs 4 GPUs; this machine has 3" in (
        capsys.readouterr().err
    )
