"""The files of a store in a local folder, which stay readable while the store is replaced.

Pieces are read, not mapped: a read of 60 KB with opening the file costs 11 us, its pages in a mapping 13 to 15
(faults, and giving the pages back so that memory does not grow to the size of the store), and a file that is
cut short gives too few bytes, where a mapping ends the process.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cellfoundry_data.store.recent import Recent

MAX_OPEN_FILES = 256
"""Of the 1,024 that a process may have open on most systems."""


class ByteRange(NamedTuple):
    """The bytes ``start`` to ``stop - 1`` of the file ``path`` (relative to the store)."""

    path: str
    start: int
    stop: int


class StoreFiles(Protocol):
    """Where a store's bytes come from. Missing files read as None and short ones as fewer bytes: the callers
    know what should be there.
    """

    def size(self, path: str) -> int | None:
        """Bytes in a file, None where it is missing."""

    def read(self, path: str) -> bytes | None:
        """A whole small file."""

    def sha256(self, path: str) -> str | None:
        """Hex SHA-256 of a file, read in pieces."""

    def ranges(self, wanted: Sequence[ByteRange]) -> Iterator[npt.NDArray[np.uint8]]:
        """The bytes of each range, in order, read-only; what lies beyond a file's end is left out."""

    def reread(self, wanted: ByteRange) -> npt.NDArray[np.uint8]:
        """The bytes of a range from their origin, after a copy of them turned out to be damaged."""


class LocalFiles:
    """A folder, held open under a shared lock: its files stay readable when another store takes its name.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = _open_locked(folder)
        self._opened: Recent[str, _OpenFile] = Recent(MAX_OPEN_FILES)

    def __del__(self) -> None:
        if hasattr(self, "_folder"):
            os.close(self._folder)

    def size(self, path: str) -> int | None:
        """Bytes in a file, None where it is missing."""
        try:
            return os.stat(path, dir_fd=self._folder).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, path: str) -> bytes | None:
        """A whole small file."""
        try:
            with os.fdopen(self._open(path), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sha256(self, path: str) -> str | None:
        """Hex SHA-256 of a file, read in pieces."""
        try:
            with os.fdopen(self._open(path), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def ranges(self, wanted: Iterable[ByteRange]) -> Iterator[npt.NDArray[np.uint8]]:
        """Each range, read when it is its turn: the processor still holds it when it is decoded."""
        for path, start, stop in wanted:
            try:
                file = self._opened.get(path, self._open_file)
                content = os.pread(file.descriptor, stop - start, start)
            except (FileNotFoundError, NotADirectoryError):
                content = b""
            yield np.frombuffer(content, np.uint8)

    def reread(self, wanted: ByteRange) -> npt.NDArray[np.uint8]:
        """The same bytes: a local file is its own origin."""
        return next(self.ranges([wanted]))

    def _open_file(self, path: str) -> _OpenFile:
        return _OpenFile(self._open(path))

    def _open(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)


class _OpenFile:
    """A descriptor that is closed when nobody, in any thread, uses it any more."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def _open_locked(folder: Path) -> int:
    """A descriptor of the folder under a shared lock, by which a writer knows that it is being read."""
    while True:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError:
            return descriptor  # a file system without locks
        try:
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except FileNotFoundError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # replaced between the two steps: open its successor
