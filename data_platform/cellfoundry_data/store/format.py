"""Names and constants of the store format, version 1 (docs/store-format.md), and the checksum entries of its
manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellfoundry_data.errors import DataError

FORMAT = "cellfoundry-store"
VERSION = 1

MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.json.sha256"
VOCABULARY = "vocab.tsv"
OBS = "obs"
SHARDS = "shards"

CHUNK_NNZ = 98_304
"""Entries of a chunk: about 61 cells of 1,600 genes, 1 % of padding."""

ESCAPE = 255
"""Byte that stands for "take the next value of the chunk's escapes"."""

ZSTD_LEVEL = 1
"""Level 3 gains nothing on these bytes."""

# Columns of the array chunk_start: what precedes a chunk in its shard.
ROW, GENE_ESCAPE, COUNT_ESCAPE = range(3)

# obs columns that the store adds; a source's own column of such a name gets a trailing underscore.
OBS_SOURCE = "source"
OBS_SOURCE_ROW = "source_row"
OBS_CELL_NAME = "cell_name"


@dataclass(frozen=True)
class FileEntry:
    """A file of a store as its manifest lists it.

    Attributes:
        path: relative to the store, with forward slashes.
        size: in bytes.
        sha256: hex digest of the content.
    """

    path: str
    size: int
    sha256: str

    @classmethod
    def of(cls, store: Path, path: Path) -> FileEntry:
        """Describe the file ``path``, which lies in the folder ``store``."""
        return cls(path.relative_to(store).as_posix(), path.stat().st_size, sha256_of(path))

    @classmethod
    def tree(cls, store: Path, folder: Path) -> list[FileEntry]:
        """Describe every file below ``folder``, in the order of their paths."""
        return [cls.of(store, path) for path in sorted(folder.rglob("*")) if path.is_file()]

    def check_size(self, store: Path, owner: str) -> None:
        """Raise DataError, naming ``owner``, where the file is missing or has another size."""
        path = store / self.path
        if not path.is_file():
            raise damaged(store, owner, f"the file {self.path} is missing")
        size = path.stat().st_size
        if size != self.size:
            raise damaged(store, owner, f"{self.path} has {size:,} bytes where {self.size:,} were written")

    def check(self, store: Path, owner: str) -> None:
        """Raise DataError, naming ``owner``, where the file is not what was written; it is read in pieces."""
        self.check_size(store, owner)
        if sha256_of(store / self.path) != self.sha256:
            raise damaged(store, owner, f"the checksum of {self.path} differs")

    def read_checked(self, store: Path, owner: str) -> bytes:
        """The file's content; DataError, naming ``owner``, where it is not what was written."""
        self.check_size(store, owner)
        content = (store / self.path).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise damaged(store, owner, f"the checksum of {self.path} differs")
        return content


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_line(manifest: bytes) -> bytes:
    """Content of the file beside the manifest, in the form that ``sha256sum --check`` reads."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def file_entries(listed: Iterable[dict[str, Any]]) -> list[FileEntry]:
    """The manifest's list of files, as entries."""
    return [FileEntry(**entry) for entry in listed]


def damaged(store: Path, owner: str, what: str) -> DataError:
    """The error for a store that is not what was written; ``owner`` is the shard or other part at fault."""
    return DataError(
        f"{owner} of the store {store} is damaged ({what}): restore that file from a copy or ingest again."
    )
