"""The page at `/`: static files that use the public API like anyone's program would."""

import hashlib
from collections.abc import Iterator
from importlib.resources import files

from fastapi import APIRouter, Request, Response

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No script may turn text into markup, ours included.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def build_page_routes() -> APIRouter:
    """Return a route for each file, all of them read into memory."""
    router = APIRouter(redirect_slashes=False)
    for name, content in _page_files():
        path = "/" if name == "index.html" else f"/page/{name}"
        _add_file(router, path, content, MEDIA_TYPES[name.rpartition(".")[2]])
    return router


def _page_files() -> Iterator[tuple[str, bytes]]:
    folder = files("quire_router") / "page"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        yield file.name, file.read_bytes()


def _add_file(router: APIRouter, path: str, content: bytes, media_type: str) -> None:
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**HEADERS, "etag": etag}

    @router.api_route(path, methods=["GET", "HEAD"])
    async def show(request: Request) -> Response:
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)
