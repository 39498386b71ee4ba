"""API keys: read from a file, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path

from cellfoundry_serving.errors import ServingError

MIN_CHARACTERS = 16
KEY_NEEDED = "An API key is needed: send it as 'Authorization: Bearer KEY'."


class ApiKeys:
    """Keys of which a request must carry one.

    Only digests are kept: they are of one length, so that the time of a comparison tells nothing, and a dump of
    the process shows no key.
    """

    def __init__(self, keys: list[str]) -> None:
        self._digests = [digest(key) for key in keys]

    @classmethod
    def read(cls, file: Path) -> ApiKeys:
        """One key a line; blank lines and those that start with # are skipped.

        Warns of a file that other users of the machine can read.

        Raises:
            ServingError: a file that cannot be read, or holds no key or a short one.
        """
        try:
            lines = [line.strip() for line in file.read_text().splitlines()]
            mode = file.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise ServingError(
                f"{file}: API keys cannot be read; give a text file with one a line."
            ) from error
        numbered = [(n, line) for n, line in enumerate(lines, 1) if line and not line.startswith("#")]
        for number, key in numbered:
            if len(key) < MIN_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
                raise ServingError(
                    f"{file}, line {number}: a key must be at least {MIN_CHARACTERS} ASCII characters "
                    "without spaces, such as `openssl rand -hex 32` prints."
                )
        if not numbered:
            raise ServingError(f"{file}: no API key in it; write one a line.")
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            warnings.warn(
                f"{file}: other users can read the API keys; `chmod 600` it.", UserWarning, stacklevel=2
            )
        return cls([key for _, key in numbered])

    def allow(self, headers: Mapping[str, str]) -> bool:
        """Whether ``Authorization: Bearer KEY`` or ``B-Authorization: KEY`` holds a key; names are lower case.

        Every key is compared, whichever fits.
        """
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [bearer.strip()] if scheme.lower() == "bearer" else []
        given.append(headers.get("b-authorization", ""))
        fits = [hmac.compare_digest(digest(key), known) for key in given for known in self._digests]
        return any(fits)


def digest(key: str) -> bytes:
    """SHA-256 of a key."""
    return hashlib.sha256(key.encode()).digest()
