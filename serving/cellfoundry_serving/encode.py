"""A source through an engine: read ahead in blocks, cut by tokens, results block by block in the source's order."""

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
from cellfoundry_data.joined_cells import Cells
from cellfoundry_data.store_cells import open_cells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.decoder_fit import encoder_tuning
from cellfoundry_model.token_batch import TokenizedCells
from cellfoundry_model.tokens import tokenize
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.read_ahead import read_ahead
from cellfoundry_serving.token_batches import consecutive, token_counts

Source: TypeAlias = str | Path | AnnData | Sequence[str | Path]
Progress = Callable[[str, int, int], None]

READ_CELLS = 1024
BLOCK_BYTES = 256 * 2**20
"""Of results in memory at a time; gene embeddings of one cell take up to 39 MB."""
ENGINE_TOKENS = 131_072
"""Per engine call: several of its own batches, so that it can group cells of like length."""
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
        src: file of counts (see ``cellfoundry_data.readers``), a store, a folder or list of them, or an AnnData.
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
        self._progress = progress
        row_shape = engine.shape(conventions["output"], conventions["pool"])
        check_decoder_fits(engine.info, conventions["output"])
        warn_about_part(engine.info, conventions["output"])
        self._cells = open_for(conventions, src, engine.vocab_genes, layer)
        self.conventions = with_bulk_median(conventions, self._cells)
        self.shape = (self._cells.n_cells, *row_shape)
        self.obs = self._cells.obs
        self.empty_cells = 0

    def __iter__(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        for cells, totals in read_ahead(self._cells.blocks(READ_CELLS)):
            self.empty_cells += count_empty(cells)
            for first, block in encoded(self._engine, cells, totals, self.conventions):
                if self._progress:
                    self._progress("embed", first + len(block), self._cells.n_cells)
                yield first, block

    def warn_about_empty_cells(self) -> None:
        """To be called when all is written: a warning that is raised as an error must not cost the output."""
        warn_about_empty_cells(self.empty_cells, self._cells.n_cells)


def open_for(
    conventions: dict[str, Any], src: Source, vocab_genes: Sequence[str], layer: str | None
) -> Cells:
    """The source's cells, read as the conventions say."""
    pre_normalized = conventions["pre_normalized"]
    return open_cells(
        src,
        Vocabulary(tuple(vocab_genes)),
        values="counts" if pre_normalized == "F" else "normalized",
        total_column=pre_normalized == "A",
        layer=layer,
    )


def with_bulk_median(conventions: dict[str, Any], cells: Cells) -> dict[str, Any]:
    """The keywords of ``Engine.encode``: for bulk counts the median total of all rows is among them."""
    if (conventions["input_type"], conventions["pre_normalized"]) == ("bulk", "F"):
        return conventions | {"bulk_median": median_total(cells)}
    return dict(conventions)


def encoded(
    engine: Engine,
    cells: CellBatch,
    totals: npt.NDArray[np.float64] | None,
    conventions: dict[str, Any],
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """(row id of the first cell, results) of neighbouring cells; the cuts depend on nothing but ``cells``."""
    row_bytes = 4 * math.prod(engine.shape(conventions["output"], conventions["pool"]))
    for part in consecutive(token_counts(cells), ENGINE_TOKENS, max(1, BLOCK_BYTES // row_bytes)):
        rows = np.arange(part.start, part.stop)
        part_totals = None if totals is None else totals[rows]
        yield (
            int(cells.row_ids[part.start]),
            engine.encode(cells.select(rows), totals=part_totals, **conventions),
        )


def count_empty(cells: CellBatch) -> int:
    """Cells without counts."""
    return int((np.diff(cells.indptr) == 0).sum())


def warn_about_empty_cells(empty: int, cells: int, *, means: bool = False) -> None:
    """A warning where some cells have no counts; ``means`` were taken, which leave them out."""
    if empty:
        what_of_them = "they are in no mean" if means else "their rows are NaN"
        warnings.warn(
            f"{empty:,} of {cells:,} cells have no counts in the model's genes; {what_of_them}.",
            UserWarning,
            stacklevel=3,
        )


def median_total(cells: Cells) -> float:
    """Median total over the vocabulary's genes, of the rows that have counts; ServingError where none has."""
    totals = np.concatenate([batch.totals() for batch, _ in cells.blocks(READ_CELLS)])
    totals = totals[totals > 0]
    if len(totals) == 0:
        raise ServingError("No row has counts in the model's genes, so none can be scaled; check the matrix.")
    return float(np.median(totals))


def check_decoder_fits(info: dict[str, Any], output: str) -> None:
    """Raises ServingError for the decoder's outputs where a fine-tuning run changed the encoder before it."""
    if output == "cell":
        return
    if tune := encoder_tuning(info):
        raise ServingError(
            f"The model's encoder was fine-tuned (tune {tune}) and its decoder no longer fits it, so there is no "
            f"{output} output; take that from the model before fine-tuning."
        )


def warn_about_part(info: dict[str, Any], output: str) -> None:
    """Warns where an official checkpoint's part was trained for another output."""
    part = info.get("part")
    if part is not None and part not in PARTS[output]:
        warnings.warn(
            f"The model is part {part!r} of an official checkpoint, but {output} output is made for part "
            f"{' or '.join(PARTS[output])}; import that part for meaningful numbers.",
            UserWarning,
            stacklevel=3,
        )
