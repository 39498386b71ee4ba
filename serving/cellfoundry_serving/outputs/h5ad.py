"""``.h5ad``: cell embeddings go into ``obsm["X_cellfoundry"]``, predicted expression becomes ``X``.

Cell embeddings of an .h5ad or an AnnData keep everything the source holds (X, layers, uns, ...), so scanpy
goes on from there; other sources give obs and the embedding. Expression has genes as var, so only obs is kept.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import h5py
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem

from cellfoundry_data.urls import is_url
from cellfoundry_serving.outputs.base import OBSM_KEY, Blocks, OutputSpec


def write_h5ad(path: Path, spec: OutputSpec, blocks: Blocks) -> None:
    """Starts from a copy of the source on disk and streams the rows into one new dense array."""
    write_base(path, spec)
    with h5py.File(path, "r+") as file:
        for group in ("obsm", "uns"):
            if group not in file:
                write_elem(file, group, {})
        write_elem(file, "uns/cellfoundry", spec.provenance)
        key = f"obsm/{OBSM_KEY}" if spec.output == "cell" else "X"
        if key in file:
            del file[key]
        rows = file.create_dataset(key, shape=spec.shape, dtype="float32")
        rows.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for first, block in blocks:
            rows[first : first + len(block)] = block


def write_base(path: Path, spec: OutputSpec) -> None:
    """The h5ad that the rows are added to."""
    source = spec.source
    with warnings.catch_warnings():
        # Files of a folder may name cells alike; ``source`` tells them apart.
        warnings.filterwarnings("ignore", "Observation names are not unique")
        if spec.output == "expression":
            AnnData(obs=spec.obs, var=pd.DataFrame(index=list(spec.genes))).write_h5ad(path)
        elif isinstance(source, AnnData):
            # Without the conversion the caller's own obs stays as it is.
            source.write_h5ad(path, convert_strings_to_categoricals=False)
        elif is_h5ad_file(source):
            shutil.copyfile(source, path)
        else:
            AnnData(obs=spec.obs).write_h5ad(path)


def is_h5ad_file(source: object) -> bool:
    """Whether all of the source can be kept by copying one file."""
    if not isinstance(source, str | Path) or is_url(str(source)):
        return False
    return Path(source).suffix.lower() == ".h5ad" and Path(source).is_file()
