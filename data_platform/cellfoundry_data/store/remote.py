"""The files of a store behind a URL: ranged reads in one batch, with a bounded copy on the local disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cellfoundry_data.errors import DataError
from cellfoundry_data.store.cache import RangeCache
from cellfoundry_data.store.files import ByteRange
from cellfoundry_data.store.format import OBS, SHARDS
from cellfoundry_data.urls import filesystem

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem

READ_BYTES = 2**24
"""Of a file that is read from end to end, at a time."""

_INHERITED: list[object] = []
"""The parent's file systems in a forked process. Freed, they would close their connections, which takes those off the
poll that both processes share: the parent would wait for ever for its next answer.
"""


class RemoteFiles:
    """Files below a URL of any protocol that fsspec knows. Nothing is retried here: the file systems do that.

    Attributes:
        cache: where ranges are kept once they were fetched; None fetches them each time.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.cache: RangeCache | None = None
        self._connect()

    def size(self, path: str) -> int | None:
        """Bytes in a file, None where it is missing."""
        try:
            return int(self._connected.size(self._place(path)))
        except FileNotFoundError:
            return None
        except Exception as error:  # each protocol has its own errors
            raise self._unreachable(path, error) from error

    def read(self, path: str) -> bytes | None:
        """A whole small file, never from the cache."""
        try:
            return self._connected.cat_file(self._place(path))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._unreachable(path, error) from error

    def sha256(self, path: str) -> str | None:
        """Hex SHA-256 of a file, read in pieces, never from the cache."""
        digest = hashlib.sha256()
        size = self.size(path)
        if size is None:
            return None
        for start in range(0, size, READ_BYTES):
            (piece,) = self._fetch([ByteRange(path, start, min(start + READ_BYTES, size))])
            digest.update(piece)
        return digest.hexdigest()

    def ranges(self, wanted: Sequence[ByteRange]) -> Iterator[npt.NDArray[np.uint8]]:
        """The bytes of each range; what the cache lacks is fetched in one batch before the first is given."""
        if self.cache is None:
            yield from (np.frombuffer(content, np.uint8) for content in self._fetch(wanted))
            return
        groups = list(_by_chunk(wanted))
        found = [self.cache.get(group) for group in groups]
        missing = [one for group, kept in zip(groups, found, strict=True) if kept is None for one in group]
        fetched = iter(self._fetch(missing))
        for group, kept in zip(groups, found, strict=True):
            if kept is not None:
                yield from (np.frombuffer(content, np.uint8) for content in kept)
                continue
            contents = [next(fetched) for _ in group]
            if all(map(_is_whole, group, contents)):
                self.cache.put(group, contents)
            yield from (np.frombuffer(content, np.uint8) for content in contents)

    def reread(self, wanted: ByteRange) -> npt.NDArray[np.uint8]:
        """The bytes of a range as the remote side has them now."""
        (content,) = self._fetch([wanted])
        return np.frombuffer(content, np.uint8)

    def _fetch(self, wanted: Sequence[ByteRange]) -> list[bytes]:
        """The ranges from the remote side, those that touch each other as one; a missing file has no bytes."""
        if not wanted:
            return []
        runs, run_of = _joined(wanted)
        try:
            answers = self._cat(runs)
        except Exception as error:
            raise self._unreachable(wanted[0].path, error) from error
        contents = [self._content(run, answer) for run, answer in zip(runs, answers, strict=True)]
        return [
            contents[run][one.start - runs[run].start : one.stop - runs[run].start]
            for one, run in zip(wanted, run_of, strict=True)
        ]

    def _cat(self, wanted: Sequence[ByteRange]) -> list[object]:
        """What the remote side answers to each range: bytes or an exception."""
        from fsspec.asyn import AsyncFileSystem, sync

        served = self._connected
        asked = (
            [self._place(one.path) for one in wanted],
            [one.start for one in wanted],
            [one.stop for one in wanted],
        )
        if not isinstance(served, AsyncFileSystem):
            return served.cat_ranges(*asked, on_error="return")
        # obstore's own one fetches gaps up to 1 MiB with the ranges (6 times the bytes at 200,000 cells) and
        # raises one error for the whole batch.
        return sync(served.loop, AsyncFileSystem._cat_ranges, served, *asked, on_error="return")

    def _content(self, wanted: ByteRange, answer: object) -> bytes:
        if isinstance(answer, FileNotFoundError):
            return b""
        if isinstance(answer, BaseException):
            size = self.size(wanted.path)
            if size is not None and size < wanted.stop:  # each protocol has its own error for this
                return b""
            raise self._unreachable(wanted.path, answer) from answer
        content = bytes(answer)  # type: ignore[call-overload]
        if len(content) > wanted.stop - wanted.start:
            raise self._unreachable(
                wanted.path, ValueError("the server sends whole files in place of ranges")
            )
        return content

    def _place(self, path: str) -> str:
        return f"{self._root}/{path}"

    @property
    def _connected(self) -> AbstractFileSystem:
        """The file system; a forked process cannot use the threads of its parent and connects anew."""
        if self._process != os.getpid():
            _INHERITED.append(self._fs)
            self._connect()
        return self._fs

    def _connect(self) -> None:
        self._process = os.getpid()
        self._fs, root = filesystem(self.url)
        self._root = root.rstrip("/")

    def _unreachable(self, path: str, error: BaseException) -> DataError:
        parts = path.split("/")
        name = {SHARDS: parts[1], OBS: parts[1].removesuffix(".parquet")}.get(parts[0]) if parts[1:] else None
        reason = next(iter(str(error).splitlines()), "").rstrip(". ") or type(error).__name__
        return DataError(
            f"{f'shard {name}' if name else path} of the store {self.url} cannot be read ({reason}): check the "
            "network and the address and start again."
        )


def _joined(wanted: Sequence[ByteRange]) -> tuple[list[ByteRange], list[int]]:
    """Ranges without those that begin where another ends, and in which of them each one lies."""
    runs: list[ByteRange] = []
    run_of = [0] * len(wanted)
    for number in sorted(range(len(wanted)), key=wanted.__getitem__):
        one = wanted[number]
        if runs and (runs[-1].path, runs[-1].stop) == (one.path, one.start):
            runs[-1] = runs[-1]._replace(stop=one.stop)
        else:
            runs.append(one)
        run_of[number] = len(runs) - 1
    return runs, run_of


def _by_chunk(wanted: Sequence[ByteRange]) -> Iterator[list[ByteRange]]:
    """Ranges that follow each other and lie in different files of one shard: the pieces of a chunk."""
    group: list[ByteRange] = []
    for one in wanted:
        paths = [other.path for other in group]
        if group and (one.path in paths or one.path.split("/")[:2] != paths[0].split("/")[:2]):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _is_whole(wanted: ByteRange, content: bytes) -> bool:
    return len(content) == wanted.stop - wanted.start
