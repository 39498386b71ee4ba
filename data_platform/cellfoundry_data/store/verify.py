"""Reading every byte of a store against its manifest and index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cellfoundry_data.errors import DataError
from cellfoundry_data.store.format import FileEntry
from cellfoundry_data.store.reader import Frame, read_frame


@dataclass(frozen=True)
class VerifyReport:
    """What ``verify`` found.

    Attributes:
        files: files that the manifest and the index list.
        bytes: their size altogether.
        bad: one sentence for each bad file, naming its shard.
        bad_shards: names of the shards with a bad file.
    """

    files: int
    bytes: int
    bad: tuple[str, ...]
    bad_shards: tuple[str, ...]


def verify(path: str | Path, progress: Callable[[str, int, int], None] | None = None) -> VerifyReport:
    """Compare every file of the store at ``path`` with the size and SHA-256 that were written.

    Raises:
        DataError: there is no readable manifest or index to compare with.
    """
    frame = read_frame(path)
    bad = _problems(frame, "the frame", frame.entries)
    bad_shards = []
    files, size = len(frame.entries), sum(entry.size for entry in frame.entries)
    for shard, name in enumerate(frame.index.names):
        entry = frame.index.entry(shard)
        wrong = _problems(frame, entry.owner, entry.files)
        if wrong:
            bad += wrong
            bad_shards.append(name)
        files, size = files + len(entry.files), size + sum(file.size for file in entry.files)
        if progress:
            progress("verify", shard + 1, len(frame.index.names))
    return VerifyReport(files, size, tuple(bad), tuple(bad_shards))


def _problems(frame: Frame, owner: str, entries: tuple[FileEntry, ...]) -> list[str]:
    problems = []
    for entry in entries:
        try:
            entry.check_size(frame.files.size(entry.path), frame.path, owner)
            entry.check_sha256(frame.files.sha256(entry.path) or "", frame.path, owner)
        except DataError as error:
            problems.append(str(error))
    return problems
