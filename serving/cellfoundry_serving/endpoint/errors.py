"""What a client did wrong, with the HTTP status to answer it with."""

from __future__ import annotations

from cellfoundry_serving.errors import ServingError

FAILED = "The server failed on this request; its log says why."
"""All that a client is told of a defect of ours."""

MAX_NAME = 32  # characters of a client's text that an error repeats; gRPC puts errors into headers


class RequestError(ServingError):
    """A request that is answered with ``status``, ``headers`` and ``{"error": message}``."""

    def __init__(self, message: str, status: int = 400, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


def too_slow(timeout_s: float) -> RequestError:
    """A request that was not answered in time."""
    return RequestError(f"The answer took longer than {timeout_s:g} s; send fewer cells at once.", 504)


def json_too_large(limit: int) -> RequestError:
    """JSON that would take too long to read."""
    return RequestError(
        f"The JSON is larger than {limit} bytes; send fewer cells at once, or as Arrow or V2's binary tensors.",
        413,
    )
