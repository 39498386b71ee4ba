"""Results that a client fetches by URL after its request, as the public scFoundation API hands them out."""

from __future__ import annotations

import secrets
from collections import OrderedDict

from cellfoundry_serving.endpoint.errors import RequestError

MAX_BYTES = 512 * 2**20  # five cells of gene embeddings, the most that a request may ask for, take 190 MiB


class Results:
    """Bytes under random names, at most ``max_bytes`` together; the oldest go first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._held: OrderedDict[str, bytes] = OrderedDict()

    def keep(self, content: bytes) -> str:
        """A name that cannot be guessed; 413 for a result that is larger than all that may be kept."""
        if len(content) > self._max_bytes:
            raise RequestError(
                f"The result is larger than {self._max_bytes} bytes; send fewer cells at once.", 413
            )
        name = secrets.token_urlsafe(24)
        self._held[name] = content
        self._bytes += len(content)
        while self._bytes > self._max_bytes:
            _, oldest = self._held.popitem(last=False)
            self._bytes -= len(oldest)
        return name

    def get(self, name: str) -> bytes:
        """What was kept; 404 where it has gone or never was."""
        content = self._held.get(name)
        if content is None:
            raise RequestError("There is no such result, or newer ones have taken its place; ask again.", 404)
        return content
