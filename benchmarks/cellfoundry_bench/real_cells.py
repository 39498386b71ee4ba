"""Real cells for the suites: a random draw from the donor that ships with the data layer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

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
