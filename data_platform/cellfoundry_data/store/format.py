"""Names and constants of the store format, version 2 (docs/store-format.md), and the entries of files in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from cellfoundry_data.errors import DataError

FORMAT = "cellfoundry-store"
VERSION = 2

MANIFEST = "manifest.json"
INDEX = "index"
VOCABULARY = "vocab.tsv"
QC = "qc.parquet"
OBS = "obs"
SHARDS = "shards"

Values = Literal["counts", "float32"]
Profile = Literal["compact", "fast"]

CHUNK_NNZ = 98_304
"""Entries of a chunk: about 61 cells of 1,600 genes, 1 % of padding."""

MAX_CHUNK = 2**24
"""Entries, and cells, that a chunk may have: what a reader allocates for one has this bound."""

ESCAPE = 255
"""Byte that stands for "take the next value of the chunk's escapes"."""

CRC_BYTES = 4

# obs columns that the store adds; a source's own column of such a name gets a trailing underscore.
OBS_SOURCE = "source"
OBS_SOURCE_ROW = "source_row"
OBS_CELL_NAME = "cell_name"

_FILE = pa.struct([("path", pa.string()), ("size", pa.int64()), ("sha256", pa.string())])
INDEX_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("cells", pa.int64()),
        ("nnz", pa.int64()),
        ("chunks", pa.int64()),
        ("chunk_nnz", pa.int64()),
        ("gene_delta_escapes", pa.int64()),
        ("count_escapes", pa.int64()),
        ("chunk_cells", pa.list_(pa.uint32())),
        ("chunk_nnz_used", pa.list_(pa.uint32())),
        ("files", pa.list_(_FILE)),
    ]
)
"""Columns of index/NNNNNN.parquet, one row a shard."""

_INDEX_FILE = re.compile(rf"{INDEX}/\d{{6}}\.parquet", re.ASCII)
_QC_FILE = re.compile(r"qc(-\d{6})?\.parquet", re.ASCII)
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class FileEntry:
    """A file of a store as its manifest or index lists it.

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
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(path.relative_to(store).as_posix(), path.stat().st_size, digest)

    @classmethod
    def tree(cls, store: Path, folder: Path) -> list[FileEntry]:
        """Describe every file below ``folder``, in the order of their paths."""
        return [cls.of(store, path) for path in sorted(folder.rglob("*")) if path.is_file()]

    def check_content(self, content: bytes | memoryview, store: object, owner: str) -> None:
        """Raise DataError, naming ``owner``, where ``content`` is not what was written."""
        self.check_size(len(content), store, owner)
        self.check_sha256(hashlib.sha256(content).hexdigest(), store, owner)

    def check_size(self, size: int | None, store: object, owner: str) -> None:
        """Raise DataError, naming ``owner``, where the file has another size or (None) is missing."""
        if size is None:
            raise damaged(store, owner, f"the file {self.path} is missing")
        if size != self.size:
            raise damaged(store, owner, f"{self.path} has {size:,} bytes where {self.size:,} were written")

    def check_sha256(self, digest: str, store: object, owner: str) -> None:
        """Raise DataError, naming ``owner``, where the digest is another."""
        if digest != self.sha256:
            raise damaged(store, owner, f"the checksum of {self.path} differs")


def file_entries(listed: Iterable[dict[str, Any]]) -> list[FileEntry]:
    """The manifest's list of files, as entries."""
    return [FileEntry(**entry) for entry in listed]


def is_shard_name(name: str) -> bool:
    """Whether a shard may have this name: it is part of paths, so letters, digits, ``-`` and ``_`` only."""
    return _SHARD_NAME.fullmatch(name) is not None


def data_file(shard: str, array: str) -> str:
    """The one data file of an array of a shard, relative to the store."""
    return f"{SHARDS}/{shard}/{array}/c/0/0"


def qc_file(generation: int) -> str:
    """The histograms of one ingest (0) or append (1, 2, ...): an append changes no file of the store."""
    return f"qc-{generation:06d}.parquet" if generation else QC


def is_qc_file(path: str) -> bool:
    """Whether a path relative to the store is a ``qc_file``."""
    return _QC_FILE.fullmatch(path) is not None


def is_index_file(path: str) -> bool:
    """Whether a path relative to the store is the index of an ingest or append."""
    return _INDEX_FILE.fullmatch(path) is not None


def is_frame_file(path: str) -> bool:
    """Whether a path may stand in the manifest: any other, outside the store maybe, is never opened."""
    named = (VOCABULARY, "zarr.json", f"{SHARDS}/zarr.json")
    return path in named or is_index_file(path) or is_qc_file(path)


def obs_file(shard: str) -> str:
    """The obs of a shard, relative to the store."""
    return f"{OBS}/{shard}.parquet"


def big_array(values: Values) -> str:
    """The array that holds what the entries measure."""
    return "count" if values == "counts" else "value"


def damaged(store: object, owner: str, what: str) -> DataError:
    """The error for a store that is not what was written; ``owner`` is the shard or other part at fault."""
    return DataError(
        f"{owner} of the store {store} is damaged ({what}): restore that file from a copy or ingest again."
    )
