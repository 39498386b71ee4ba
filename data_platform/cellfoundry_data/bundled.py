"""The real data that ships with the package: one human pancreas donor of Baron et al. 2016."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import anndata
import numpy as np


def baron_h5ad(out_path: str | Path) -> Path:
    """Write the Baron donor to ``out_path`` as .h5ad and return that path.

    1,937 cells x 20,125 gene symbols, raw counts (CSR, float32), ``obs["cell_type"]`` with 14 types;
    licence and source are in ``bundled/README.md``. The file appears complete or not at all.
    """
    out_path = Path(out_path)
    shipped = resources.files("cellfoundry_data") / "bundled" / "baron_pancreas_h1.h5ad"
    with resources.as_file(shipped) as path:
        donor = anndata.read_h5ad(path)
    donor.X = donor.X.tocsr().astype(np.float32)
    temporary = out_path.with_name(f".{out_path.name}.{os.getpid()}.tmp")
    donor.write_h5ad(temporary)
    temporary.replace(out_path)
    return out_path
