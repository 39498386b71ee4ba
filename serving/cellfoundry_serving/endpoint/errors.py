"""What a client did wrong, with the HTTP status to answer it with."""

from __future__ import annotations

from cellfoundry_serving.errors import ServingError


class RequestError(ServingError):
    """A request that is answered with ``status``, ``headers`` and ``{"error": message}``."""

    def __init__(self, message: str, status: int = 400, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
