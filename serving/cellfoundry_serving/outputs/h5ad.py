"""``.h5ad``: cell embeddings go into ``obsm["X_cellfoundry"]``, predicted expression becomes ``X``.

Cell embeddings of an .h5ad or an AnnData keep everything the source holds (X, layers, uns, ...), so scanpy
goes on from there; other sources give obs and the embedding. Expression has the vocabulary as var, so only
obs is kept.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem

from cellfoundry_serving.outputs.base import OBSM_KEY, EmbeddingWriter, OutputSpec


class H5adWriter(EmbeddingWriter):
    """Starts from a copy of the source on disk and streams the rows into one new dense array."""

    def __init__(self, path: Path, spec: OutputSpec) -> None:
        super().__init__(path, spec)
        write_base(path, spec)
        self._file = h5py.File(path, "r+")
        for group in ("obsm", "uns"):
            if group not in self._file:
                write_elem(self._file, group, {})
        write_elem(self._file, "uns/cellfoundry", spec.provenance)
        key = f"obsm/{OBSM_KEY}" if spec.output == "cell" else "X"
        if key in self._file:
            del self._file[key]
        self._rows = self._file.create_dataset(key, shape=spec.shape, dtype="float32")
        self._rows.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    def write(self, first: int, block: npt.NDArray[np.float32]) -> None:
        """Writes the block's rows."""
        self._rows[first : first + len(block)] = block

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def write_base(path: Path, spec: OutputSpec) -> None:
    """The h5ad that the rows are added to."""
    if spec.output == "expression":
        AnnData(obs=spec.obs, var=pd.DataFrame(index=list(spec.genes))).write_h5ad(path)
    elif isinstance(spec.source, AnnData):
        # Without the conversion the caller's own obs stays as it is.
        spec.source.write_h5ad(path, convert_strings_to_categoricals=False)
    elif Path(spec.source).suffix.lower() == ".h5ad":
        shutil.copyfile(spec.source, path)
    else:
        AnnData(obs=spec.obs).write_h5ad(path)
