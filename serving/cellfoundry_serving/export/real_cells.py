"""Real cells for int8: some to find the ranges of activations, others to compare with torch."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.bundled import baron_h5ad
from cellfoundry_data.store_cells import open_cells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.check import CheckedCells

CALIBRATION_CELLS, COMPARED_CELLS = 64, 32
READ_CELLS = 4096  # of a source's beginning, to draw from
# Of a cell's molecules: sequencing differs in depth by more than ten times, and so do the values a model is fed.
SHARES = (0.5, 0.2, 0.1, 0.05)
TARGETS = ("t3.5", "t4", "t4.5", "t5")  # depths asked for; a model is trained on T from a cell's own total up


def calibration_and_compared(
    vocab_genes: tuple[str, ...], source: str | Path | None
) -> tuple[list[CheckedCells], list[CheckedCells]]:
    """Cells to calibrate with and other ones to compare, at several depths and T.

    Both are drawn from the first 4,096 of ``source``; each cell comes twice, see ``varied``.

    Args:
        vocab_genes: the model's genes.
        source: any that holds counts; by default the donor that ships with the package, for its vocabulary.

    Raises:
        ServingError: no source for another vocabulary, or fewer than two cells with counts.
        DataError: see ``open_cells``.
    """
    cells = real_cells(vocab_genes, source)
    drawn = np.random.default_rng(0).permutation(len(cells))[: CALIBRATION_CELLS + COMPARED_CELLS]
    compared = max(1, min(COMPARED_CELLS, len(drawn) // 3))
    return varied(cells.select(drawn[compared:])), varied(cells.select(drawn[:compared]))


def real_cells(vocab_genes: tuple[str, ...], source: str | Path | None) -> CellBatch:
    """The cells with counts among the first 4,096 of ``source``; see ``calibration_and_compared``."""
    vocabulary = Vocabulary(vocab_genes)
    if source is None and vocabulary.hash != Vocabulary.named("scfoundation").hash:
        raise ServingError(
            "int8 needs real cells over the model's own genes; name a source with --calibrate."
        )
    with tempfile.TemporaryDirectory() as folder:
        path = baron_h5ad(Path(folder) / "donor.h5ad") if source is None else source
        batch, _ = next(iter(open_cells(path, vocabulary).blocks(READ_CELLS)))
    filled = with_counts(batch)
    if len(filled) < 2:
        raise ServingError(
            f"{source}: fewer than two cells have counts in the model's genes; give another source."
        )
    return filled


def varied(batch: CellBatch) -> list[CheckedCells]:
    """Each cell of ``batch`` as it is and thinned to one of ``SHARES``, each time with one of ``TARGETS``, in turns.

    Thinned cells that lost all counts are left out.
    """
    turn, n_targets = np.arange(len(batch)), len(TARGETS)
    cells = []
    for position, target in enumerate(TARGETS):
        copies = [batch.select(np.flatnonzero(turn % n_targets == position))]
        of_target = turn // len(SHARES) % n_targets == position
        for share_position, share in enumerate(SHARES):
            taken = np.flatnonzero(of_target & (turn % len(SHARES) == share_position))
            copies.append(thin(batch.select(taken), share, seed=share_position))
        cells += [CheckedCells("cell", filled, target) for copy in copies if len(filled := with_counts(copy))]
    return cells


def thin(batch: CellBatch, share: float | npt.NDArray[np.float64], seed: int) -> CellBatch:
    """The same cells as if a sequencing had caught ``share`` of their molecules, or a share of each entry's (nnz,):
    counts drawn binomially.
    """
    counts = np.random.default_rng(seed).binomial(np.rint(batch.counts).astype(np.int64), share)
    caught = counts > 0
    indptr = np.concatenate([[0], np.cumsum(caught)])[batch.indptr].astype(np.int64)
    return CellBatch(indptr, batch.gene_ids[caught], counts[caught].astype(np.float32), batch.row_ids)


def with_counts(batch: CellBatch) -> CellBatch:
    """The cells that have any."""
    return batch.select(np.flatnonzero(np.diff(batch.indptr)))
