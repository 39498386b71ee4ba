"""What is to be read: every source looked at once, so that a wrong one is refused before any work."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cellfoundry_data.aliases import Aliases
from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest.obs_columns import common_schema, source_schema
from cellfoundry_data.ingest.work_folder import fingerprint
from cellfoundry_data.qc import QcLimits
from cellfoundry_data.readers.location import name_of
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.store.cell_keys import MAX_SOURCE_ROWS
from cellfoundry_data.store.format import Values
from cellfoundry_data.urls import filesystem, is_url
from cellfoundry_data.vocabulary import GeneAlignment, Vocabulary

PART_CELLS = 2**16
"""Cells of a part: some 2 s of work. Fixed, because parts decide the order of floating-point sums."""

SAMPLE_CELLS = 128
"""Cells read to foresee how many entries a source has."""

COMPRESSED_BYTES_PER_ENTRY = 4
"""Where a sample would cost as much as reading all, the file's size tells about how many entries it has."""

SCHEMA_CELLS = 2**18
"""Cells whose obs is held at a time."""

WRONG_SOURCES = 5
"""Wrong sources that one message names."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ReadOptions:
    """How all sources are read.

    Attributes:
        vocabulary: the gene axis.
        aliases: other names of its genes.
        layer: which matrix of an AnnData.
        values: "counts" or "float32".
        limits: which cells stay.
        seed: of the shuffle.
        key: fingerprint of all of these.
    """

    vocabulary: Vocabulary
    aliases: Aliases | None
    layer: str | None
    values: Values
    limits: QcLimits
    seed: int
    key: str


@dataclass(frozen=True)
class SourcePlan:
    """A source as one look at it shows it.

    Attributes:
        index: its number, half of a cell's identity.
        name: what the obs column ``source`` says.
        path: absolute, or a URL.
        identity: changes when its content does.
        n_cells: its cells.
        row_access: whether it can be read from any row.
        format: of the file.
        matrix: which of its matrices is read.
        alignment: where its gene columns go.
        schema: Arrow types of its obs.
        size: bytes of its files, 0 where a server does not say.
        entries: expected entries.
    """

    index: int
    name: str
    path: str
    identity: str
    n_cells: int
    row_access: bool
    format: str
    matrix: str
    alignment: GeneAlignment
    schema: pa.Schema
    size: int
    entries: int

    def parts(self) -> Iterator[tuple[int, int]]:
        """Rows [start, stop) of each task."""
        step = PART_CELLS if self.row_access else self.n_cells
        for start in range(0, self.n_cells, step):
            yield start, min(start + step, self.n_cells)


def look_at_sources(
    sources: Sequence[str], names: Sequence[str], first: int, options: ReadOptions, progress: Progress | None
) -> list[SourcePlan]:
    """Open and align each source, numbered from ``first``.

    Raises:
        DataError: sources that cannot be used, up to ``WRONG_SOURCES`` of them in one message.
    """
    plans: list[SourcePlan] = []
    wrong: list[str] = []
    for number, (name, path) in enumerate(zip(names, sources, strict=True)):
        try:
            plans.append(_look_at(first + number, name, path, options))
        except DataError as error:
            wrong.append(str(error))
        if len(wrong) == WRONG_SOURCES:
            break
        if progress:
            progress("check sources", number + 1, len(sources))
    if len(wrong) > 1:
        raise DataError(
            f"{len(wrong)} sources cannot be used: " + "; ".join(each.rstrip(".") for each in wrong) + "."
        )
    if wrong:
        raise DataError(wrong[0])
    return plans


def _look_at(index: int, name: str, path: str, options: ReadOptions) -> SourcePlan:
    state, size = identity(path)  # before it is opened: a change from here on is noticed when it is read
    source = open_cells(path, options)
    if source.n_cells > MAX_SOURCE_ROWS:
        raise DataError(f"{path}: has more than {MAX_SOURCE_ROWS:,} cells; split it.")
    entries = size // COMPRESSED_BYTES_PER_ENTRY
    if source.row_access:
        sample = min(SAMPLE_CELLS, source.n_cells)
        entries = next(source.blocks(sample))[0].nnz * source.n_cells // sample
    return SourcePlan(
        index=index,
        name=name,
        path=absolute(path),
        identity=state,
        n_cells=source.n_cells,
        row_access=source.row_access,
        format=source.format,
        matrix=source.matrix_name,
        alignment=source.alignment,
        schema=_obs_schema(source),
        size=size,
        entries=entries,
    )


def _obs_schema(source: SourceCells) -> pa.Schema:
    """Names and types of the source's obs; of a large one some rows at a time are held."""
    ranges = [(start, start + SCHEMA_CELLS) for start in range(0, source.n_cells, SCHEMA_CELLS)]
    pieces = [source_schema(source.obs_rows(start, min(stop, source.n_cells))) for start, stop in ranges]
    together = common_schema(pieces)
    # What is empty everywhere fits any type that the same column has in another source.
    empty = {
        name for name in together.names if all(pa.types.is_null(piece.field(name).type) for piece in pieces)
    }
    return pa.schema(
        [pa.field(field.name, pa.null()) if field.name in empty else field for field in together]
    )


def open_cells(path: str, options: ReadOptions, alignment: GeneAlignment | None = None) -> SourceCells:
    """The cells of one source as ``options`` say; its ``alignment`` is found where it is not known."""
    return SourceCells(
        path,
        options.vocabulary,
        values="counts" if options.values == "counts" else "normalized",
        layer=options.layer,
        aliases=options.aliases,
        alignment=alignment,
    )


def source_names(sources: Sequence[str], taken: set[str]) -> list[str]:
    """What the obs column ``source`` calls each: its file name, or its absolute path where names repeat.

    ``taken``: names of sources that the store has already.
    """
    if not sources:
        raise DataError("no source was given: name at least one file of counts.")
    public = [public_path(path) for path in sources]
    if len({absolute(path) for path in sources}) < len(sources):
        raise DataError("a source was given twice: its cells would be repeated.")
    short = [name_of(path) for path in sources]
    if len(set(short)) == len(short) and taken.isdisjoint(short):
        return short
    if len(set(public)) < len(public) or not taken.isdisjoint(public):
        raise DataError("two sources have the same address but for its query: copy one to a name of its own.")
    return public


def public_path(path: str) -> str:
    """The absolute path; a URL without user and, of a web address, query and fragment, which may hold secrets
    (presigned URLs).
    """
    return "::".join(map(_public_url, path.split("::"))) if is_url(path) else absolute(path)


def _public_url(url: str) -> str:
    protocol, separator, rest = url.partition("://")
    if protocol in ("http", "https"):
        rest = re.split("[?#]", rest, maxsplit=1)[0]
    host, slash, inner = rest.partition("/")
    return f"{protocol}{separator}{host.rpartition('@')[2]}{slash}{inner}"


def absolute(path: str) -> str:
    """The path for a worker that stands in another folder; a URL as it is."""
    return path if is_url(path) else str(Path(path).resolve())


def identity(path: str) -> tuple[str, int]:
    """A text that changes when the source does, from sizes and times of change of its files or from what its
    server says of it, and its size in bytes.
    """
    try:
        listed = _remote_files(path) if is_url(path) else _local_files(Path(path))
    except DataError:
        raise
    except Exception as error:  # obstore's errors are no OSError
        if not is_url(path) and not isinstance(error, OSError):
            raise
        listed = []  # opening it will say why
    return fingerprint(listed), sum(size for _, _, size in listed)


def _local_files(root: Path) -> list[tuple[str, Any, int]]:
    inside = sorted(file for file in root.rglob("*") if file.is_file()) if root.is_dir() else [root]
    states = [(str(file.relative_to(root)), file.stat()) for file in inside]
    return [(name, state.st_mtime_ns, state.st_size) for name, state in states]


def _remote_files(url: str) -> list[tuple[str, Any, int]]:
    system, inner = filesystem(url)
    files = system.find(inner, detail=True) or {inner: system.info(inner)}
    return sorted((name, system.ukey(name), info.get("size") or 0) for name, info in files.items())
