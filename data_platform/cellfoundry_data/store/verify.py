"""Reading every byte of a store against its manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cellfoundry_data.errors import DataError
from cellfoundry_data.store.format import file_entries
from cellfoundry_data.store.reader import owned_files, read_manifest


@dataclass(frozen=True)
class VerifyReport:
    """What ``verify`` found.

    Attributes:
        files: files that the manifest lists.
        bytes: their size altogether.
        bad: one sentence for each bad file, naming its shard.
        bad_shards: names of the shards with a bad file.
    """

    files: int
    bytes: int
    bad: tuple[str, ...]
    bad_shards: tuple[str, ...]


def verify(path: str | Path, progress: Callable[[str, int, int], None] | None = None) -> VerifyReport:
    """Compare every file of the store at ``path`` with the manifest's size and SHA-256.

    Raises:
        DataError: there is no readable manifest to compare with.
    """
    folder = Path(path)
    owned = owned_files(read_manifest(folder))
    bad, bad_shards, files, size = [], [], 0, 0
    for done, (owner, listed) in enumerate(owned):
        wrong = []
        for entry in file_entries(listed):
            files, size = files + 1, size + entry.size
            try:
                entry.check(folder, owner)
            except DataError as error:
                wrong.append(str(error))
        bad += wrong
        if wrong and owner.startswith("shard "):
            bad_shards.append(owner.removeprefix("shard "))
        if progress:
            progress("verify", done + 1, len(owned))
    return VerifyReport(files, size, tuple(bad), tuple(bad_shards))
