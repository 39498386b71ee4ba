"""Real cells for the suites: a random draw from the donor that ships with the data layer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch


def real_cells(cells: int, seed: int = 0) -> CellBatch:
    """``cells`` cells of the bundled donor (at most 1,937) over the 19,264 genes, drawn without replacement."""
    from cellfoundry_data.bundled import baron_h5ad
    from cellfoundry_data.source_cells import SourceCells
    from cellfoundry_data.vocabulary import Vocabulary

    with tempfile.TemporaryDirectory() as folder:
        source = SourceCells(baron_h5ad(Path(folder) / "donor.h5ad"), Vocabulary.named("scfoundation"))
        donor, _ = next(iter(source.blocks(source.n_cells)))
    return donor.select(np.random.default_rng(seed).permutation(len(donor))[:cells])


def shallow_cells(cells: int, genes: int, seed: int = 0) -> CellBatch:
    """``real_cells`` as a shallower sequencing would have seen them: counts thinned to about ``genes`` genes each."""
    from cellfoundry_serving.export.real_cells import thin

    deep = real_cells(cells, seed)
    counts_of = np.split(deep.counts, deep.indptr[1:-1])
    shares = [share_for(counts, genes) for counts in counts_of]
    return thin(deep, np.repeat(shares, np.diff(deep.indptr)), seed)


def share_for(counts: npt.NDArray[np.float32], genes: int) -> float:
    """Share of a cell's molecules of which ``genes`` genes are expected to have one, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(30):
        share = (low + high) / 2
        expected = (1 - (1 - share) ** counts).sum()
        low, high = (share, high) if expected < genes else (low, share)
    return high
