"""Where a source lies: a path of this machine or a URL that fsspec opens (s3, gs, http, memory, ...)."""

from __future__ import annotations

import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from ..urls import filesystem, is_url

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer
    from fsspec.spec import AbstractFileSystem

BLOCK_BYTES = 2**20
MAX_BLOCKS = 64


def as_location(path: str | Path) -> str:
    """The path or URL as text; a file:// URL becomes the path it names, with or without its %-escapes."""
    text = str(path)
    if not text.startswith("file://"):
        return text
    _, slash, inner = text.removeprefix("file://").partition("/")
    local = slash + inner  # not parsed: # and ? are characters of the path, as in fsspec
    return local if Path(local).exists() else unquote(local)


def name_of(path: str) -> str:
    """Last part of a path, or of a URL without its query."""
    if path.startswith(("http://", "https://")):
        path = unquote(urlsplit(path).path)
    return PurePosixPath(path).name if is_url(path) or path.startswith("/") else Path(path).name


def suffix_of(path: str) -> str:
    """Lower-case suffix of the name, with the one before it where it is ".gz"."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name_of(path)).suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def is_folder(path: str) -> bool:
    """Whether it is a folder; a URL's prefix counts as one."""
    if not is_url(path):
        return Path(path).is_dir()
    system, inner = filesystem(path)
    return bool(system.isdir(inner))


def exists(path: str) -> bool:
    """Whether there is such a file or folder."""
    if not is_url(path):
        return Path(path).exists()
    system, inner = filesystem(path)
    return bool(system.exists(inner))


def children(folder: str) -> list[tuple[str, bool]]:
    """(path, whether it is a folder) of all that lies in a folder, sorted; hidden names are left out."""
    if is_url(folder):
        system, inner = filesystem(folder)
        found = [
            (system.unstrip_protocol(entry["name"].rstrip("/")), entry["type"] == "directory")
            for entry in system.ls(inner, detail=True)
            if entry["name"].rstrip("/") != inner.rstrip("/")
        ]
    else:
        found = [(str(entry), entry.is_dir()) for entry in Path(folder).iterdir()]
    return sorted((path, is_dir) for path, is_dir in found if not name_of(path).startswith((".", "_")))


def has_wildcard(path: str) -> bool:
    """Whether it is a pattern; an existing path is none, whatever its characters, nor is a web address."""
    if path.startswith(("http://", "https://")):
        return "*" in path
    return glob.has_magic(path) and (is_url(path) or not Path(path).exists())


def matches(pattern: str) -> list[str]:
    """What a pattern with * ? [ ] or ** names, sorted."""
    if not is_url(pattern):
        return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 Path.glob takes no absolute pattern
    system, inner = filesystem(pattern)
    return sorted(system.unstrip_protocol(path) for path in system.glob(inner))


@contextmanager
def open_binary(path: str) -> Iterator[BinaryIO]:
    """Open a file for reading at any position.

    A URL is read by ranges as they are needed; where its server cannot give ranges, it is copied to a temporary
    file first.
    """
    if not is_url(path):
        with Path(path).open("rb") as file:
            yield file
        return
    system, inner = filesystem(path)
    with system.open(inner, "rb") as remote:
        if _gives_ranges(remote):
            yield BufferedReader(_RangedFile(system, inner, remote.seek(0, 2)))
            return
    with system.open(inner, "rb", block_size=0) as stream, tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy, 2**20)
        copy.seek(0)
        yield cast(BinaryIO, copy)


@contextmanager
def local_file(path: str) -> Iterator[str]:
    """The file's path on this machine; a URL is copied to a temporary file, which is removed at the end."""
    if not is_url(path):
        yield path
        return
    with open_binary(path) as remote, tempfile.NamedTemporaryFile() as copy:
        shutil.copyfileobj(remote, copy, 2**20)
        copy.flush()
        yield copy.name


class _RangedFile(RawIOBase):
    """A remote file read by blocks, of which the last used are kept: HDF5 goes back and forth between a few places.

    fsspec's own read-ahead begins anew at every step back: it fetched 78 MB for a block of 0.8 MB, this 10 MB.
    """

    def __init__(self, system: AbstractFileSystem, inner: str, size: int) -> None:
        from fsspec.caching import BlockCache

        self._size = size
        self._at = 0
        self._cache = BlockCache(
            BLOCK_BYTES, lambda start, stop: system.cat_file(inner, start=start, end=stop), size, MAX_BLOCKS
        )

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, (0, self._at, self._size)[whence] + offset)
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        stop = min(self._at + len(view), self._size)
        content = self._cache._fetch(self._at, stop) if self._at < stop else b""
        view[: len(content)] = content
        self._at += len(content)
        return len(content)


def _gives_ranges(remote: BinaryIO) -> bool:
    """Whether the last byte can be had by itself; only web servers may be unable to."""
    if not remote.seekable():
        return False
    try:
        remote.seek(max(0, remote.seek(0, 2) - 1))
        remote.read(1)
    except ValueError:  # fsspec's answer to a server that sends the whole file for a range
        return False
    return True
