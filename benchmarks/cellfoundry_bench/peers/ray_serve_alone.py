"""Ray Serve alone: one replica that reads a request's body and answers at once, without a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@contextmanager
def ray_serve_alone(port: int, answer: bytes, path: str) -> Iterator[None]:
    """POST ``path`` on loopback, answered with ``answer``; on the connected Ray cluster."""
    from ray import serve

    async def read(request: Request) -> Response:
        await request.body()
        return Response(answer)

    def build() -> Starlette:
        return Starlette(routes=[Route(path, read, methods=["POST"])])

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    deployment = serve.deployment(name="alone", max_ongoing_requests=1024)(serve.ingress(build)())
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(deployment.bind(), name="alone", route_prefix="/")
        yield
    finally:
        serve.shutdown()
