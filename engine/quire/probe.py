"""Ask the router that the supervisor has started how it is doing."""

import asyncio
import json
from dataclasses import dataclass

PROBE_TIMEOUT_S = 5.0
REPLICA_UP_METRIC = "quire_router_replica_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterProbe:
    """HTTP questions to a router on this machine; one that does not answer is not ready."""

    host: str
    port: int
    api_key: str = ""

    async def is_listening(self) -> bool:
        """Whether the router answers at all."""
        status, _ = await self.get("/health")
        return status == 200

    async def is_up(self, replica: str) -> bool:
        """Whether the router sends requests to `replica`, a gRPC target."""
        status, text = await self.get("/metrics")
        return status == 200 and is_replica_up(text, replica)

    async def model(self) -> str:
        """Return the first model served; empty when the router does not say."""
        status, text = await self.get("/v1/models")
        if status != 200:
            return ""
        served = json.loads(text)["data"]
        return str(served[0]["id"]) if served else ""

    async def get(self, path: str) -> tuple[int, str]:
        """Return status and body; status 0 when nothing answers."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                return await self._get(path)
        except (OSError, TimeoutError):
            return 0, ""

    async def _get(self, path: str) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        authorization = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        # HTTP/1.0: the body ends with the connection, and is never chunked.
        request = f"GET {path} HTTP/1.0\r\nHost: {self.host}\r\n{authorization}\r\n"
        try:
            writer.write(request.encode())
            head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
        finally:
            writer.close()
        fields = head.split(b" ", 2)
        return (int(fields[1]) if len(fields) > 1 else 0), body.decode(errors="replace")


def is_replica_up(metrics: str, replica: str) -> bool:
    """Read from Prometheus text whether a replica takes requests."""
    samples = (line for line in metrics.splitlines() if line.startswith(REPLICA_UP_METRIC + "{"))
    return any(f'"{replica}"' in line and float(line.rsplit(" ", 1)[1]) == 1 for line in samples)
