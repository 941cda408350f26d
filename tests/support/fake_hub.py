"""The Hugging Face hub, as much of it as downloads need."""

import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    error_code: str = ""


class FakeHub:
    """Speaks as much of the hub's protocol as downloading a model needs."""

    def __init__(self, listener: socket.socket | None = None) -> None:
        """Serve on a listening socket, or on a free port of loopback."""
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

        listener = listener or socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.server = ThreadingHTTPServer(self.address, Handler, bind_and_activate=False)
        self.server.socket.close()
        self.server.socket = listener
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.address)

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
