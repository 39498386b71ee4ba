"""A source through an engine: read in blocks, cut by tokens, results block by block in the source's order."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from anndata import AnnData

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.store_cells import StoreCells, open_cells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.token_batch import TokenizedCells
from cellfoundry_model.tokens import tokenize
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.token_batches import consecutive, token_counts

Source: TypeAlias = str | Path | AnnData
Progress = Callable[[str, int, int], None]

READ_CELLS = 1024
WRITE_BYTES = 64 * 2**20
ENGINE_TOKENS = (
    131_072  # per engine call: several of its own batches, so that it can group cells of like length
)
# Parts of an official checkpoint that were trained for an output; models pretrained here have no part.
PARTS = {"cell": ("cell", "rde"), "gene": ("gene",), "expression": ("gene",)}


def encode_source(
    src: Source,
    engine: Engine,
    *,
    output: str = "cell",
    pool: str = "all",
    target: str = "t4",
    input_type: str = "singlecell",
    pre_normalized: str = "F",
    layer: str | None = None,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """All results of a source in memory, float32, in its row order; a cell without counts gives a row of NaN.

    Args:
        src: file or folder of counts (see ``cellfoundry_data.readers``), a store, or an AnnData.
        engine: computes.
        output: "cell" (cells, width), "gene" (cells, genes, width) or "expression" (cells, genes).
        pool: "all" or "max", for cell output.
        target: depth T asked for: "tN", "fN" or "aN".
        input_type: "singlecell" or "bulk"; bulk counts are scaled to the median total of all rows.
        pre_normalized: "F" raw counts, "T" log-normalised, "A" log-normalised with totals in the last column.
        layer: matrix of an AnnData to read; by default the first with whole counts, X with ``pre_normalized``.
        progress: called with ("embed", cells done, cells).

    Raises:
        DataError, ModelError, ServingError: see the layers.
    """
    conventions = {
        "output": output,
        "pool": pool,
        "target": target,
        "input_type": input_type,
        "pre_normalized": pre_normalized,
    }
    blocks = EncodedBlocks(src, engine, conventions, layer, progress)
    result = np.empty(blocks.shape, dtype=np.float32)
    for first, block in blocks:
        result[first : first + len(block)] = block
    blocks.warn_about_empty_cells()
    return result


def tokenize_source(
    src: Source, vocab_genes: Sequence[str], *, target: str = "t4", layer: str | None = None
) -> TokenizedCells:
    """All cells of raw counts as tokens in memory, in the source's order; arguments as of ``encode_source``."""
    cells = open_cells(src, Vocabulary(tuple(vocab_genes)), layer=layer)
    blocks = cells.blocks(READ_CELLS)
    return TokenizedCells([tokenize(batch, n_genes=len(vocab_genes), target=target) for batch, _ in blocks])


class EncodedBlocks:
    """Iterates (first row, results) over a source in bounded memory.

    Attributes:
        conventions: keywords of ``Engine.encode``; for bulk counts the median total of all rows among them.
        shape: of all results together; the first axis is the cells.
        obs: the source's obs, indexed by cell name.
        empty_cells: rows of NaN seen so far.
    """

    def __init__(
        self,
        src: Source,
        engine: Engine,
        conventions: dict[str, Any],
        layer: str | None,
        progress: Progress | None,
    ) -> None:
        self._engine = engine
        self.conventions = dict(conventions)
        self._progress = progress
        self._row_shape = engine.shape(conventions["output"], conventions["pool"])
        check_decoder_fits(engine, conventions["output"])
        warn_about_part(engine, conventions["output"])
        self._cells = open_cells(
            src,
            Vocabulary(engine.vocab_genes),
            values="counts" if conventions["pre_normalized"] == "F" else "normalized",
            total_column=conventions["pre_normalized"] == "A",
            layer=layer,
        )
        if (conventions["input_type"], conventions["pre_normalized"]) == ("bulk", "F"):
            self.conventions["bulk_median"] = median_total(self._cells)
        self.shape = (self._cells.n_cells, *self._row_shape)
        self.obs = self._cells.obs
        self.empty_cells = 0

    def __iter__(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        block_rows = max(1, min(READ_CELLS, WRITE_BYTES // (4 * math.prod(self._row_shape))))
        for batch, totals in self._cells.blocks(READ_CELLS):
            self.empty_cells += int((np.diff(batch.indptr) == 0).sum())
            for start in range(0, len(batch), block_rows):
                rows = np.arange(start, min(start + block_rows, len(batch)))
                block = self._encode(batch.select(rows), None if totals is None else totals[rows])
                yield int(batch.row_ids[start]), block

    def warn_about_empty_cells(self) -> None:
        """To be called when all is written: a warning that is raised as an error must not cost the output."""
        if self.empty_cells:
            warnings.warn(
                f"{self.empty_cells:,} of {self._cells.n_cells:,} cells have no counts in the model's genes; "
                "their rows are NaN.",
                UserWarning,
                stacklevel=2,
            )

    def _encode(self, batch: CellBatch, totals: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float32]:
        block = np.empty((len(batch), *self._row_shape), dtype=np.float32)
        for cells in consecutive(token_counts(batch), ENGINE_TOKENS, len(batch)):
            rows = np.arange(cells.start, cells.stop)
            block[rows] = self._engine.encode(
                batch.select(rows), totals=None if totals is None else totals[rows], **self.conventions
            )
            if self._progress:
                self._progress("embed", int(batch.row_ids[rows[-1]]) + 1, self._cells.n_cells)
        return block


def median_total(cells: SourceCells | StoreCells) -> float:
    """Median total over the vocabulary's genes, of the rows that have counts; ServingError where none has."""
    totals = np.concatenate([batch.totals() for batch, _ in cells.blocks(READ_CELLS)])
    totals = totals[totals > 0]
    if len(totals) == 0:
        raise ServingError("No row has counts in the model's genes, so none can be scaled; check the matrix.")
    return float(np.median(totals))


def check_decoder_fits(engine: Engine, output: str) -> None:
    """Raises ServingError for the decoder's outputs where a fine-tuning run changed the encoder before it."""
    if output == "cell":
        return
    record = engine.info.get("finetuned")
    while record:
        if record["config"]["tune"] != "head":
            raise ServingError(
                f"The model's encoder was fine-tuned (tune {record['config']['tune']}) and its decoder no longer fits "
                f"it, so there is no {output} output; take that from the model before fine-tuning."
            )
        record = record.get("before")


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
