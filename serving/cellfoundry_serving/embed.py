"""Batch embedding: every cell of a source through a model, in the source's order, in bounded memory.

Cells are read in blocks, cut by tokens for the engine, and written as they come; only the in-memory form
(``out=None``) holds all results.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from anndata import AnnData

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.outputs.base import OutputSpec
from cellfoundry_serving.outputs.dispatch import check_output, open_writer
from cellfoundry_serving.store_cells import StoreCells, is_store
from cellfoundry_serving.token_batches import consecutive, token_counts

Progress = Callable[[str, int, int], None]

READ_CELLS = 1024
WRITE_BYTES = 64 * 2**20
ENGINE_TOKENS = (
    131_072  # per engine call: several of its own batches, so that it can group cells of like length
)
# Parts of an official checkpoint that were trained for an output; models pretrained here have no part.
PARTS = {"cell": ("cell", "rde"), "gene": ("gene",), "expression": ("gene",)}


@dataclass(frozen=True)
class EmbedSummary:
    """What ``embed`` wrote.

    Attributes:
        shape: of the written array; the first axis is the cells.
        empty_cells: cells without counts, whose rows are NaN.
        seconds: wall time of reading, computing and writing.
        engine: which engine ran, and why.
    """

    shape: tuple[int, ...]
    empty_cells: int
    seconds: float
    engine: str

    def __str__(self) -> str:
        """One line for people."""
        rate = self.shape[0] / self.seconds
        return f"{' x '.join(f'{n:,}' for n in self.shape)} float32, {rate:,.1f} cells/s, {self.engine}"


@overload
def embed(
    src: str | Path | AnnData,
    model: str | Path | Engine,
    out: None = None,
    *,
    output: str = ...,
    pool: str = ...,
    target: str = ...,
    input_type: str = ...,
    pre_normalized: str = ...,
    engine: str = ...,
    precision: str = ...,
    layer: str | None = ...,
    progress: Progress | None = ...,
) -> npt.NDArray[np.float32]: ...
@overload
def embed(
    src: str | Path | AnnData,
    model: str | Path | Engine,
    out: str | Path,
    *,
    output: str = ...,
    pool: str = ...,
    target: str = ...,
    input_type: str = ...,
    pre_normalized: str = ...,
    engine: str = ...,
    precision: str = ...,
    layer: str | None = ...,
    progress: Progress | None = ...,
) -> EmbedSummary: ...
def embed(
    src: str | Path | AnnData,
    model: str | Path | Engine,
    out: str | Path | None = None,
    *,
    output: str = "cell",
    pool: str = "all",
    target: str = "t4",
    input_type: str = "singlecell",
    pre_normalized: str = "F",
    engine: str = "auto",
    precision: str = "fp32",
    layer: str | None = None,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32] | EmbedSummary:
    """Embeds ``src`` and writes ``out``, or returns the array where ``out`` is None.

    Args:
        src: file or folder of counts (see ``cellfoundry_data.readers``), a store, or an AnnData.
        model: model directory, directory of an export, or an engine that is already open.
        out: .h5ad, .npy, .parquet or .zarr; appears whole or not at all.
        output: "cell" (cells, width), "gene" (cells, genes, width) or "expression" (cells, genes).
        pool: "all" or "max", for cell output.
        target: depth T asked for: "tN", "fN" or "aN".
        input_type: "singlecell" or "bulk"; bulk counts are scaled to the median total of all rows.
        pre_normalized: "F" raw counts, "T" log-normalised, "A" log-normalised with totals in the last column.
        engine: "auto", "torch", "onnx" or "tensorrt"; unused where ``model`` is an engine.
        precision: "fp32" or "bf16"; unused where ``model`` is an engine.
        layer: matrix of an AnnData file to read, by default X.
        progress: called with ("embed", cells done, cells).

    Raises:
        DataError, ModelError, ServingError: see the layers; nothing is left at ``out`` then.
    """
    started = time.monotonic()
    if out is not None:
        check_output(Path(out), output)
        check_source_is_kept(src, Path(out), output)
    runner = model if isinstance(model, Engine) else open_engine(model, engine, precision)
    conventions: dict[str, Any] = {
        "output": output,
        "pool": pool,
        "target": target,
        "input_type": input_type,
        "pre_normalized": pre_normalized,
    }
    row_shape = runner.shape(conventions["output"], conventions["pool"])
    warn_about_part(runner, output)
    cells = open_cells(src, Vocabulary(runner.vocab_genes), pre_normalized, layer)
    if input_type == "bulk" and pre_normalized == "F":
        conventions["bulk_median"] = median_total(cells)
    shape = (cells.n_cells, *row_shape)
    blocks = EmbeddedBlocks(runner, cells, row_shape, conventions, progress)
    if out is None:
        result = np.empty(shape, dtype=np.float32)
        for first, block in blocks:
            result[first : first + len(block)] = block
    else:
        provenance = {name: str(value) for name, value in conventions.items()} | {
            "engine": runner.why,
            "model_sha256": str(runner.info["weights_sha256"]),
            "vocabulary_sha256": str(runner.info["vocabulary_sha256"]),
            "cellfoundry": version("cellfoundry"),
        }
        spec = OutputSpec(output, shape, cells.obs, runner.vocab_genes, provenance, src)
        with open_writer(Path(out), spec) as writer:
            for first, block in blocks:
                writer.write(first, block)
    if blocks.empty_cells:
        warnings.warn(
            f"{blocks.empty_cells:,} of {cells.n_cells:,} cells have no counts in the model's genes; "
            "their rows are NaN.",
            UserWarning,
            stacklevel=2,
        )
    if out is None:
        return result
    return EmbedSummary(shape, blocks.empty_cells, time.monotonic() - started, runner.why)


class EmbeddedBlocks:
    """Iterates (first row, results) of a source; ``empty_cells`` counts the rows of NaN seen so far."""

    def __init__(
        self,
        engine: Engine,
        cells: SourceCells | StoreCells,
        row_shape: tuple[int, ...],
        conventions: dict[str, Any],
        progress: Progress | None,
    ) -> None:
        self._engine = engine
        self._cells = cells
        self._row_shape = row_shape
        self._conventions = conventions
        self._progress = progress
        self.empty_cells = 0

    def __iter__(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        block_rows = max(1, min(READ_CELLS, WRITE_BYTES // (4 * math.prod(self._row_shape))))
        for batch, totals in self._cells.blocks(READ_CELLS):
            self.empty_cells += int((np.diff(batch.indptr) == 0).sum())
            for start in range(0, len(batch), block_rows):
                rows = np.arange(start, min(start + block_rows, len(batch)))
                block = self._encode(batch.select(rows), None if totals is None else totals[rows])
                yield int(batch.row_ids[start]), block

    def _encode(self, batch: CellBatch, totals: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float32]:
        block = np.empty((len(batch), *self._row_shape), dtype=np.float32)
        for cells in consecutive(token_counts(batch), ENGINE_TOKENS, len(batch)):
            rows = np.arange(cells.start, cells.stop)
            block[rows] = self._engine.encode(
                batch.select(rows), totals=None if totals is None else totals[rows], **self._conventions
            )
            if self._progress:
                self._progress("embed", int(batch.row_ids[rows[-1]]) + 1, self._cells.n_cells)
        return block


def open_cells(
    src: str | Path | AnnData, vocab: Vocabulary, pre_normalized: str, layer: str | None
) -> SourceCells | StoreCells:
    """The source as aligned blocks; ServingError where options do not fit a store."""
    if isinstance(src, AnnData) or not is_store(src):
        return SourceCells(
            src,
            vocab,
            values="counts" if pre_normalized == "F" else "normalized",
            total_column=pre_normalized == "A",
            layer=layer,
        )
    if pre_normalized != "F" or layer is not None:
        raise ServingError(f"{src} is a store of raw counts; leave out --layer and --pre-normalized.")
    return StoreCells(src, vocab)


def median_total(cells: SourceCells | StoreCells) -> float:
    """Median total over the vocabulary's genes, of the rows that have counts; ServingError where none has."""
    totals = np.concatenate([batch.totals() for batch, _ in cells.blocks(READ_CELLS)])
    totals = totals[totals > 0]
    if len(totals) == 0:
        raise ServingError("No row has counts in the model's genes, so none can be scaled; check the matrix.")
    return float(np.median(totals))


def check_source_is_kept(src: str | Path | AnnData, out: Path, output: str) -> None:
    """Raises ServingError where writing ``out`` would destroy the source; adding obsm to an .h5ad keeps it."""
    if isinstance(src, AnnData) or not out.exists() or not Path(src).exists():
        return
    if out.samefile(src) and not (out.suffix.lower() == ".h5ad" and output == "cell"):
        raise ServingError(f"{out} is the source itself and would be overwritten; give another name.")


def warn_about_part(engine: Engine, output: str) -> None:
    """Warns where an official checkpoint's part was trained for another output."""
    part = engine.info.get("part")
    if part is not None and part not in PARTS[output]:
        warnings.warn(
            f"The model is part {part!r} of an official checkpoint, but {output} output is made for part "
            f"{' or '.join(PARTS[output])}; import that part for meaningful numbers.",
            UserWarning,
            stacklevel=3,
        )
