"""How a store of many cells would look: buckets filled by the ingest's own hash, files, index, memory and time.

Prints the tables of docs/scaling-data.md. What is simulated: the bucket of every cell, with the functions that ingest
uses, and the index, written by the store's own schema. What is arithmetic: the rest, from the figures of a result of
the data suite.
    python -m cellfoundry_bench.atlas.simulate_store benchmarks/results/FOLDER/data.json 50000000 1000000000
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cellfoundry_bench.errors import BenchError
from cellfoundry_data.batch import CellBatch
from cellfoundry_data.ingest.runs import BYTES_PER_ENTRY, RUN_ENTRIES
from cellfoundry_data.ingest.shards import CELLS_PER_SHARD, count_buckets
from cellfoundry_data.store.cell_keys import buckets, cell_keys, shuffle_keys
from cellfoundry_data.store.format import CHUNK_NNZ, INDEX_SCHEMA
from cellfoundry_data.store.writer import start_store, write_shard
from cellfoundry_data.vocabulary import Vocabulary

NNZ = 1590
BLOCK = 2**20
SOURCE_CELLS = 100_000
NODES, CORES = (1, 8, 64), 32
RANKS = (1, 8, 64)
SLICE_CPU_S = 0.00025
"""CPU time of reading one bucket's slice of one run, measured on a run of 21,000 cells and 1 to 7 cells a slice."""
RANGES_A_CHUNK = 5  # row lengths, genes, counts and both escapes; a token budget reads row lengths once more


@dataclass(frozen=True)
class Measured:
    """Figures of a result of the data suite.

    Attributes:
        compact, fast: bytes per non-zero.
        ingest: cells per CPU-second.
        read: CPU-microseconds a cell of the store that one of R ranks spends on an epoch, by R.
    """

    compact: float
    fast: float
    ingest: float
    read: dict[int, float]

    @classmethod
    def of(cls, path: Path) -> Measured:
        """From ``data.json``; BenchError if it lacks one of them."""
        rows = {row["what"]: row["value"] for row in json.loads(path.read_text())["rows"]}
        try:
            ingest = next(value for what, value in rows.items() if what.startswith("ingest of "))
            read = {
                int(what.split()[2]): value
                for what, value in rows.items()
                if what.startswith("one of ") and value is not None
            }
            size = [rows[f"bytes per non-zero, {profile}, synthetic"] for profile in ("compact", "fast")]
            figures = [*size, ingest, *read.values()]
            if None in figures or not read:
                raise KeyError("a figure that was not measured")
        except (KeyError, StopIteration) as error:
            raise BenchError(
                f"{path} lacks {error}; run the data suite with its default size first"
            ) from error
        return cls(size[0], size[1], ingest, read)


def bucket_sizes(cells: int, n_buckets: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Cells in each bucket, (buckets,), when ``cells`` cells come from sources of 100,000."""
    sizes = np.zeros(n_buckets, np.int64)
    rows = np.arange(SOURCE_CELLS, dtype=np.int64)
    for source in range(-(-cells // SOURCE_CELLS)):
        keys = cell_keys(source, rows[: cells - source * SOURCE_CELLS])
        sizes += np.bincount(buckets(shuffle_keys(keys, seed), n_buckets), minlength=n_buckets)
    return sizes


def shard_files() -> list[str]:
    """Paths of a shard's files, from writing one."""
    batch = CellBatch(
        np.array([0, 1]), np.array([0], np.int32), np.ones(1, np.float32), np.zeros(1, np.int64)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start_store(folder, Vocabulary(("gene",)))
        row = write_shard(folder, "000000", batch, np.zeros(1, np.uint64), pa.table({"source": ["a"]}))
    return [file["path"] for file in row["files"]]


def index_bytes(sizes: npt.NDArray[np.int64], files: Sequence[str], sample: int = 1000) -> int:
    """Bytes of the index file of shards of these sizes, from writing that of ``sample`` of them."""
    rng = np.random.default_rng(0)
    per_chunk = CHUNK_NNZ // NNZ
    rows: list[dict[str, Any]] = []
    for number, cells in enumerate(sizes[:sample]):
        chunks = -(-int(cells) // per_chunk)
        chunk_cells = rng.normal(per_chunk, 4, chunks).clip(1).astype(int)
        rows.append(
            {
                "name": f"{number:06d}",
                "cells": int(cells),
                "nnz": int(cells) * NNZ,
                "chunks": chunks,
                "chunk_nnz": CHUNK_NNZ,
                "gene_delta_escapes": 100,
                "count_escapes": 100,
                "chunk_cells": chunk_cells.tolist(),
                "chunk_nnz_used": rng.integers(CHUNK_NNZ - NNZ, CHUNK_NNZ, chunks).tolist(),
                "files": [
                    {
                        "path": path.replace("000000", f"{number:06d}"),
                        "size": int(rng.integers(1 << 20)),
                        "sha256": rng.bytes(32).hex(),
                    }
                    for path in files
                ],
            }
        )
    written = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), written, compression="zstd")
    return len(written.getvalue()) * len(sizes) // min(sample, len(sizes))


def tables(measured: Measured, counts: Sequence[int]) -> str:
    """The page's tables in Markdown, a column for each number of cells."""
    files = shard_files()
    columns = [_column(cells, measured, files) for cells in counts]
    head = ["", *(f"{cells:,} cells" for cells in counts)]
    lines = [
        head,
        ["---"] * len(head),
        *([name, *(column[name] for column in columns)] for name in columns[0]),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _column(cells: int, measured: Measured, files: Sequence[str]) -> dict[str, str]:
    entries = cells * NNZ
    n_buckets = count_buckets(cells, entries, CELLS_PER_SHARD)
    sizes = bucket_sizes(cells, n_buckets)
    chunks = entries // (CHUNK_NNZ - NNZ // 2)
    runs = -(-entries // RUN_ENTRIES)
    column = {
        "store, compact": _bytes(entries * measured.compact),
        "store, fast": _bytes(entries * measured.fast),
        "shards": f"{n_buckets:,}",
        "cells a shard: mean, sd, least, most": (
            f"{sizes.mean():,.0f}, {sizes.std():,.0f}, {sizes.min():,}, {sizes.max():,}"
        ),
        "largest shard over the mean": f"{sizes.max() / sizes.mean():.3f}",
        "files": f"{n_buckets * len(files):,}",
        "size of a shard's genes or counts file": _bytes(entries * measured.compact / n_buckets / 2),
        "chunks": f"{chunks:,}",
        "index file": _bytes(index_bytes(sizes, files)),
        "spill on disk while ingest runs": _bytes(entries * BYTES_PER_ENTRY["counts"]),
        "runs": f"{runs:,}",
        "slices of runs that the second pass reads": f"{runs * n_buckets:,}",
        "cells a slice": f"{cells / (runs * n_buckets):.2f}",
        "ingest, CPU-hours of the cells": f"{cells / measured.ingest / 3600:,.1f}",
        "ingest, CPU-hours of the slices": f"{runs * n_buckets * SLICE_CPU_S / 3600:,.1f}",
    }
    cpu_hours = cells / measured.ingest / 3600 + runs * n_buckets * SLICE_CPU_S / 3600
    for nodes in NODES:
        column[f"ingest, wall time on {nodes} x {CORES} cores"] = _duration(cpu_hours / (nodes * CORES))
    for ranks in RANKS:
        # Measured up to 8 ranks; beyond, what is left is the same for every number of ranks.
        cost = measured.read[max(known for known in measured.read if known <= ranks)]
        column[f"epoch, CPU time of each of {ranks} ranks"] = _duration(cells * cost / 1e6 / 3600)
        column[f"epoch, ranged reads of {ranks} ranks, no cache"] = f"{chunks * RANGES_A_CHUNK * ranks:,}"
    return column


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:,.2f} {unit}" if size < 10 else f"{size:,.0f} {unit}"
        size /= 1000
    raise AssertionError


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:,.1f} min" if hours >= 1 / 60 else f"{hours * 3600:,.1f} s"


def main() -> None:
    """Entry point: a result file, then numbers of cells."""
    result, *counts = sys.argv[1:]
    print(tables(Measured.of(Path(result)), [int(cells) for cells in counts]))


if __name__ == "__main__":
    main()
