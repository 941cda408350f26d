"""What runs on a machine that has torch and a GPU, and not all that Quire's servers need."""

import json
import sys
from pathlib import Path

import pytest

from missing_packages import OTHER_PACKAGES, SERVER_PACKAGES, run_without
from quire.cli import main
from random_models import TINY


def test_importing_the_names_loads_neither_torch_nor_server_packages() -> None:
    program = (
        "from quire import LLM, SamplingParams, RequestOutput, CompletionOutput\n"
        "from quire import RequestOutputKind\n"
        "import quire\n"
        "assert 'LLM' in dir(quire)\n"
    )

    done = run_without(["torch", *SERVER_PACKAGES, *OTHER_PACKAGES], program)

    assert done.returncode == 0, done.stderr


def test_measuring_in_this_process_needs_no_package_of_servers_and_clients(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    engine = [str(tmp_path), "--load-format", "dummy", "--skip-tokenizer-init"]
    engine += ["--disable-detokenize", "--device", "cpu", "--dtype", "float32"]
    engine += ["--kv-cache-memory-bytes", str(1 << 22), "--input-len", "8", "--output-len", "2"]
    latency, throughput = tmp_path / "latency.json", tmp_path / "throughput.json"
    commands = [
        ["latency", *engine, "--num-iters", "1", "--num-iters-warmup", "0"],
        ["throughput", *engine, "--num-prompts", "3"],
    ]
    commands[0] += ["--output-json", str(latency)]
    commands[1] += ["--output-json", str(throughput)]

    done = run_without(
        [*SERVER_PACKAGES, *OTHER_PACKAGES],
        "from quire.cli import main\n"
        f"statuses = [main(['bench', *command]) for command in {commands!r}]\n"
        "assert statuses == [0, 0], statuses\n",
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(latency.read_text())["avg_latency"] > 0
    assert json.loads(throughput.read_text())["total_num_tokens"] == 3 * (8 + 2)


def test_measuring_in_this_process_names_what_it_lacks_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torch", "zmq", "fastapi"):
        monkeypatch.setitem(sys.modules, name, None)

    assert [main(["bench", name]) for name in ("latency", "throughput", "compare")] == [1, 1, 1]

    message = "quire bench: error: not installed: torch; run: pip install 'quire[engine]'\n"
    assert capsys.readouterr().err == message * 3
