"""A real Prometheus, of the Debian package, scraping every second."""

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from serve_process import free_port, wait_until

STEP_S = 1
READY_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to scrape, and the labels that a PodMonitor would give its series."""

    job: str
    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    honor_labels: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "job_name": self.job,
            "honor_labels": self.honor_labels,
            "static_configs": [{"targets": [self.address], "labels": dict(self.labels)}],
        }


class Prometheus:
    """One server, asked over its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.started_at = time.time()

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the data of an answer.

        Raises:
            AssertionError: Prometheus refuses, with its own words.
        """
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def num_values(self, expr: str) -> int:
        """Return how many values an expression has had since the start, NaN apart."""
        data = self.get(
            "query_range", query=expr, start=self.started_at, end=time.time(), step=STEP_S
        )
        values = [value for series in data["result"] for _, value in series["values"]]
        return len([value for value in values if value != "NaN"])

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("targets")["activeTargets"]
        return found


@contextmanager
def prometheus(folder: Path, targets: Sequence[Target], rules: Path) -> Iterator[Prometheus]:
    """Run Prometheus until the end of the block."""
    interval = f"{STEP_S}s"
    configuration = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [str(rules)],
        "scrape_configs": [target.to_json() for target in targets],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{free_port()}"
    command = [
        *("prometheus", f"--config.file={folder}/prometheus.yml", "--log.level=warn"),
        *(f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"),
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    server = Prometheus(f"http://{address}")
    try:
        wait_until(lambda: _is_ready(server.url), timeout_s=READY_LIMIT_S, what="Prometheus ready")
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
