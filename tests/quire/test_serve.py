"""Router and fake engines under the supervisor: real processes, no model."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_process import Served, free_port, is_up, wait_until

WAIT_S = 90.0

SCRIPT = """
import asyncio, pathlib, sys
from quire.commands.serve import supervise
from quire.deployment import Deployment
deployment = Deployment(
    num_replicas=2,
    host="127.0.0.1",
    port=int(sys.argv[1]),
    socket_dir=pathlib.Path(sys.argv[2]),
    router_arguments=(),
    engine_arguments=("--decode-ms=5",),
    engine_module="quire_engine.testing",
)
sys.exit(asyncio.run(supervise(deployment, "", 60.0)))
"""


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("s")
    port, log = free_port(), folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(port), str(folder)],
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    served = Served(process=process, url=f"http://127.0.0.1:{port}", log=log)
    try:
        wait_until(lambda: num_ready(served) == 2, timeout_s=WAIT_S, what="both replicas up")
        yield served
    finally:
        served.stop()


def num_ready(served: Served) -> float:
    is_listening = is_up(served.url + "/health")
    return served.metric("quire_router_replica_up") if is_listening else 0


def children(served: Served, needle: str) -> list[int]:
    """Ids of the processes right below the supervisor whose command line has `needle`."""
    path = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children")
    pids = [int(pid) for pid in path.read_text().split()]
    return [pid for pid in pids if needle in Path(f"/proc/{pid}/cmdline").read_text()]


def complete(served: Served) -> str:
    body = json.dumps({"model": "fake", "prompt": "hello", "max_tokens": 5}).encode()
    request = urllib.request.Request(
        f"{served.url}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(json.load(response)["choices"][0]["text"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_engine_rejoins_and_one_interrupt_ends_all(served: Served) -> None:
    engines = children(served, "quire_engine.testing")
    [router] = children(served, "router")
    assert len(engines) == 2
    assert len(complete(served)) == 5

    os.kill(engines[0], signal.SIGKILL)

    assert [len(complete(served)) for _ in range(10)] == [5] * 10
    wait_until(
        lambda: len(children(served, "quire_engine.testing")) == 2 and num_ready(served) == 2,
        timeout_s=WAIT_S,
        what="the killed engine is back",
    )
    again = children(served, "quire_engine.testing")
    assert engines[0] not in again

    assert served.stop() == 0

    assert not [pid for pid in (router, *again) if Path(f"/proc/{pid}").exists()]
    log = served.log.read_text()
    assert "Traceback" not in log
    assert "engine 0: killed by SIGKILL; starting it again" in log
    assert "router: ready after" in log
    assert "engine 1: ready after" in log
    assert f"  URL    {served.url}/v1\n  model  fake\n" in log
    assert f"curl {served.url}/v1/chat/completions" in log
