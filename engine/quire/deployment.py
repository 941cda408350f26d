"""What `quire serve` runs: one router and N engines, as command lines. Pure."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ANY_HOST = ("", "0.0.0.0", "::")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A router at host:port in front of engines that listen on unix sockets."""

    num_replicas: int
    host: str
    port: int
    socket_dir: Path
    router_arguments: tuple[str, ...]
    engine_arguments: tuple[str, ...]
    metrics_port: int | None = None
    """Of the first engine, the next ones count up; None: free ones."""
    has_api_key: bool = False
    engine_module: str = "quire_engine"
    """`quire_engine.testing` runs fake engines."""
    gpus_per_engine: int = 1
    gpus: tuple[str, ...] = ()
    """Those of the machine, as CUDA_VISIBLE_DEVICES names them; none for engines on CPUs."""

    @property
    def probe_host(self) -> str:
        """Where this machine reaches the router."""
        return "127.0.0.1" if self.host in ANY_HOST else self.host

    @property
    def url(self) -> str:
        host = "localhost" if self.host in ANY_HOST else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def socket(self, replica: int) -> Path:
        """Return the unix socket of an engine."""
        return self.socket_dir / f"engine-{replica}.sock"

    def target(self, replica: int) -> str:
        """Return the gRPC target of an engine."""
        return f"unix:{self.socket(replica)}"

    def router_command(self) -> tuple[str, ...]:
        targets = [f"--replicas={self.target(number)}" for number in range(self.num_replicas)]
        address = (f"--host={self.host}", f"--port={self.port}")
        router = (sys.executable, "-m", "quire.cli", "router")
        return (*router, *address, *targets, *self.router_arguments)

    def engine_command(self, replica: int) -> tuple[str, ...]:
        port = 0 if self.metrics_port is None else self.metrics_port
        port += replica if port > 0 else 0
        place = (f"--uds={self.socket(replica)}", f"--metrics-port={port}")
        return (sys.executable, "-m", self.engine_module, *place, *self.engine_arguments)

    def engine_environment(self, replica: int, environment: Mapping[str, str]) -> dict[str, str]:
        """Share cores and GPUs: engines that each use all of them are in each other's way."""
        if self.num_replicas == 1:
            return {}
        return self._share_of_cores(environment) | self._share_of_gpus(replica)

    def _share_of_gpus(self, replica: int) -> dict[str, str]:
        size = self.gpus_per_engine
        if len(self.gpus) < self.num_replicas * size:
            return {}  # they run on CPUs, or share what there is
        mine = self.gpus[replica * size : (replica + 1) * size]
        return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}

    def _share_of_cores(self, environment: Mapping[str, str]) -> dict[str, str]:
        if "OMP_NUM_THREADS" in environment:
            return {}
        num_cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return {"OMP_NUM_THREADS": str(max(1, num_cores // self.num_replicas))}

    def banner(self, model: str, ready_after_s: float) -> str:
        """Return what a user needs to send the first request."""
        question = {"role": "user", "content": "What is the capital of France?"}
        body = json.dumps({"model": model, "messages": [question]})
        key = ' -H "Authorization: Bearer $QUIRE_API_KEY"' if self.has_api_key else ""
        return "\n".join(
            [
                f"Ready after {ready_after_s:.1f} s.",
                f"  URL    {self.url}/v1",
                f"  model  {model}",
                "",
                f"curl {self.url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\",
                f"  -d '{body}'",
                "",
            ]
        )


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> tuple[str, ...]:
    """Return the GPUs of this machine, without the seconds that asking CUDA takes."""
    if (named := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip())
    found = [path for path in devices.glob("nvidia*") if path.name[len("nvidia") :].isdigit()]
    return tuple(str(index) for index in range(len(found)))
