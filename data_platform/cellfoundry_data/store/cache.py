"""Ranges of a remote store's files on the local disk, bounded in size; any number of processes share it."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from cellfoundry_data.store import codec
from cellfoundry_data.store.files import ByteRange
from cellfoundry_data.store.format import CRC_BYTES

FOLDER = "cellfoundry-ranges"
"""In the folder that the user named: nothing beside it is ever looked at or removed."""

CACHE_BYTES = 2**36
"""64 GiB: a store of 40 M cells in the profile ``compact``."""

TALLY = "written"
"""File whose length is the number of blocks written since the last look at the folder: 16 MB at 64 GiB."""

BLOCK_BYTES = 4096
"""What a file takes on the disk is a multiple of this."""

KEPT_SHARE = 0.9
"""Of the limit, when the oldest files are removed."""


class RangeCache:
    """Ranges of one store, in a folder that other stores may share; what is asked for together, as the pieces of
    a chunk are, is one file with a CRC-32C behind.

    Nothing here is trusted: whoever reads a range checks it and asks for it again where it is damaged. A disk
    that takes no more ranges is no error, it only makes for more fetching.

    Args:
        folder: the user's; the ranges go into ``cellfoundry-ranges`` below it, made where it is missing.
        store: digest of the store's manifest, so that ranges of a store that changed are never mixed.
        limit: bytes on the disk that the cache may have, about.
    """

    def __init__(self, folder: Path, store: str, limit: int = CACHE_BYTES) -> None:
        self._folder, self._limit = folder / FOLDER, limit
        self._store = self._folder / store

    def get(self, wanted: Sequence[ByteRange]) -> list[memoryview] | None:
        """The bytes of the ranges, None where they were not put here together or are damaged."""
        try:
            content = self._place(wanted).read_bytes()
        except OSError:
            return None
        ends = np.cumsum([one.stop - one.start for one in wanted]).tolist()
        if len(content) != ends[-1] + CRC_BYTES or not codec.is_sealed(np.frombuffer(content, np.uint8)):
            return None
        return [memoryview(content)[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def put(self, wanted: Sequence[ByteRange], contents: Sequence[bytes]) -> None:
        """Keep the bytes of the ranges, in one step."""
        place = self._place(wanted)
        temporary = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        sealed = codec.seal(b"".join(contents))
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(_blocks(len(sealed)))
            try:
                temporary.write_bytes(sealed)
                temporary.replace(place)
            finally:
                temporary.unlink(missing_ok=True)

    def _place(self, wanted: Sequence[ByteRange]) -> Path:
        first = wanted[0]
        return self._store / first.path / f"{first.start}-{first.stop}-{len(wanted)}"

    def _make_room(self, blocks: int) -> None:
        """Count the blocks; where the count, of all processes, reaches the limit, look at the folder."""
        with (self._folder / TALLY).open("ab", buffering=0) as tally:
            tally.write(bytes(blocks))
            limit = self._limit // BLOCK_BYTES
            if tally.tell() <= limit:
                return
            try:
                fcntl.flock(tally, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return  # another process is at it
            tally.truncate(self._remove_oldest(int(limit * KEPT_SHARE) - blocks) + blocks)

    def _remove_oldest(self, limit: int) -> int:
        """Remove the oldest files, of any store, beyond ``limit`` blocks, and return how many blocks are left."""
        files = sorted(_files_below(self._folder))
        total = sum(blocks for _, blocks, _ in files)
        for _, blocks, path in files:
            if total <= limit:
                break
            with suppress(FileNotFoundError):
                path.unlink()
            total -= blocks
        return total


def _blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES)


def _files_below(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Time of writing, blocks and path of every file but the tally."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path == folder / TALLY:
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime, _blocks(status.st_size), path
