"""The page at ``/`` and its static files: they hold no data, so they need no key, and load nothing from elsewhere."""

from __future__ import annotations

import hashlib
from importlib import resources

from fastapi import APIRouter, HTTPException, Request, Response

PAGE_PATH = "/page/"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asks each time, and is told that nothing changed
}


def page_routes() -> APIRouter:
    """The page; its files are read once, here."""
    router = APIRouter(include_in_schema=False)
    folder = resources.files("cellfoundry_serving.endpoint") / "page"
    files = {file.name: file.read_bytes() for file in folder.iterdir() if suffix(file.name) in TYPES}

    @router.get("/")
    async def page(request: Request) -> Response:
        return static(request, "index.html", files["index.html"])

    @router.get(PAGE_PATH + "{name}")
    async def part(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404)
        return static(request, name, files[name])

    return router


def static(request: Request, name: str, content: bytes) -> Response:
    """The file, or 304 for a browser that has it."""
    headers = HEADERS | {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=TYPES[suffix(name)], headers=headers)


def suffix(name: str) -> str:
    """Of a file's name, with the dot."""
    return "." + name.rpartition(".")[2]
