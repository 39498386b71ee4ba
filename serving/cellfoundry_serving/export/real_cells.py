"""Real cells for int8: some to find the ranges of activations, others to compare with torch."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.bundled import baron_h5ad
from cellfoundry_data.store_cells import open_cells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.errors import ServingError

CALIBRATION_CELLS, COMPARED_CELLS = 24, 8
READ_CELLS = 4096  # of a source's beginning, to draw from


def real_cells(vocab_genes: tuple[str, ...], source: str | Path | None) -> tuple[CellBatch, CellBatch]:
    """Cells to calibrate with and other ones to compare, drawn from the first 4,096 of ``source``.

    ``source`` is any that holds counts; by default the donor that ships with the package, for its vocabulary.

    Raises:
        ServingError: no source for another vocabulary, or fewer than two cells with counts.
        DataError: see ``open_cells``.
    """
    vocabulary = Vocabulary(vocab_genes)
    if source is None and vocabulary.hash != Vocabulary.named("scfoundation").hash:
        raise ServingError(
            "int8 needs real cells over the model's own genes; name a source with --calibrate."
        )
    with tempfile.TemporaryDirectory() as folder:
        path = baron_h5ad(Path(folder) / "donor.h5ad") if source is None else source
        batch, _ = next(iter(open_cells(path, vocabulary).blocks(READ_CELLS)))
    filled = np.flatnonzero(np.diff(batch.indptr))
    if len(filled) < 2:
        raise ServingError(
            f"{source}: fewer than two cells have counts in the model's genes; give another source."
        )
    drawn = np.random.default_rng(0).permutation(filled)[: CALIBRATION_CELLS + COMPARED_CELLS]
    compared = max(1, min(COMPARED_CELLS, len(drawn) // 4))
    return batch.select(drawn[compared:]), batch.select(drawn[:compared])
