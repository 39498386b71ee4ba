"""What the OpenAPI document says of refusals and of keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from cellfoundry_serving.endpoint.gate import OPEN_PATHS, RESULTS_PATH


class Error(BaseModel):
    """Answer to a request that is refused or fails."""

    error: str
    """One sentence: what is wrong, and what to do."""


WHY = {
    400: "The request is not one that can be answered.",
    401: "An API key is needed.",
    403: "Clients may not do this here.",
    404: "There is no such path, model, version or result.",
    408: "The body did not arrive in time.",
    413: "More at once than the endpoint takes; send fewer cells.",
    415: "The body is of another type than this route reads.",
    429: "Too much waits already; Retry-After says when to try again.",
    431: "The head of the request is too large.",
    500: "The server failed; its log says why.",
    503: "The server is about to stop, or no model is loaded.",
    504: "The answer took too long; send fewer cells.",
}
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "B-Authorization": {"type": "apiKey", "in": "header", "name": "B-Authorization"},
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses`` of routes that may answer with these."""
    return {status: {"model": Error, "description": WHY[status]} for status in statuses}


# "default" also keeps FastAPI from describing a 422 of its own, which is never sent.
ANYWHERE = errors(400, 401, 431, 500) | {"default": {"model": Error, "description": "Any other refusal."}}
OF_CELLS = errors(404, 408, 413, 429, 504)
"""Of routes that embed."""


def describe_keys(app: FastAPI, needed: bool) -> None:
    """Adds to the document of ``app`` how a key is sent, and where it is ``needed``."""
    described: Callable[[], dict[str, Any]] = app.openapi

    def with_keys() -> dict[str, Any]:
        document = described()
        document["components"]["securitySchemes"] = SCHEMES
        document["security"] = [{name: []} for name in SCHEMES] + ([] if needed else [{}])
        for path, methods in document["paths"].items():
            if path in OPEN_PATHS or path.startswith(RESULTS_PATH):
                for operation in methods.values():
                    operation["security"] = []
        return document

    app.openapi = with_keys  # type: ignore[method-assign]
