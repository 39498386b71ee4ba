"""Results that a client fetches by URL after its request, as the public scFoundation API hands them out."""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from typing import Protocol

from cellfoundry_serving.errors import ServingError

MAX_BYTES = 512 * 2**20  # five cells of gene embeddings, the most that a request may ask for, take 190 MiB
PUBLIC_URL = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?(/[\w.~%-]+)*/?", re.ASCII)


def check_public_url(url: str | None) -> str | None:
    """The address under which clients reach the endpoint, without a slash at its end; None stays None.

    ServingError where it is no http(s) URL of a host, to which a path can be added.
    """
    if url is not None and not PUBLIC_URL.fullmatch(url):
        raise ServingError(
            f"--public-url {url!r} is no address of an endpoint; give one such as https://cells.example.org."
        )
    return url and url.rstrip("/")


class ResultStore(Protocol):
    """Where results wait: ``Results`` of this process, or those that the replicas of a cluster share."""

    async def keep(self, content: bytes) -> str:
        """A name that cannot be guessed, of at most MAX_BYTES."""

    async def get(self, name: str) -> bytes | None:
        """What was kept; None where it has gone or never was."""


class Results:
    """Bytes under random names, at most ``max_bytes`` together; the oldest go first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._held: OrderedDict[str, bytes] = OrderedDict()

    async def keep(self, content: bytes) -> str:
        """A name that cannot be guessed."""
        name = secrets.token_urlsafe(24)
        self._held[name] = content
        self._bytes += len(content)
        while self._bytes > self._max_bytes:
            _, oldest = self._held.popitem(last=False)
            self._bytes -= len(oldest)
        return name

    async def get(self, name: str) -> bytes | None:
        """What was kept; None where it has gone or never was."""
        return self._held.get(name)
