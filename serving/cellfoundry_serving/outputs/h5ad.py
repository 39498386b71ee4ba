"""``.h5ad``: cell embeddings go into ``obsm["X_cellfoundry"]``, predicted expression becomes ``X``.

Cell embeddings of an .h5ad or an AnnData keep everything the source holds (X, layers, uns, ...), so scanpy
goes on from there; other sources give obs and the embedding. Expression has genes as var, so only obs is kept.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

import anndata
import h5py
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem
from anndata.io import write_h5ad as write_anndata
from pandas.api.types import is_numeric_dtype, is_object_dtype

from cellfoundry_data.urls import is_url
from cellfoundry_serving.errors import ServingError
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
    with warnings.catch_warnings(), nullable_text():
        # Files of a folder may name cells alike; ``source`` tells them apart.
        warnings.filterwarnings("ignore", "Observation names are not unique")
        if spec.output == "expression":
            AnnData(obs=spec.obs, var=pd.DataFrame(index=list(spec.genes))).write_h5ad(path)
        elif isinstance(source, AnnData):
            # The function, since the method would make ``path`` the file of an AnnData that is backed; without the
            # conversion, since the caller's own obs stays as it is.
            write_anndata(path, _writable(source), convert_strings_to_categoricals=False)
        elif is_h5ad_file(source):
            shutil.copyfile(source, path)
        else:
            AnnData(obs=spec.obs).write_h5ad(path)


def check_obs_is_written(adata: AnnData) -> None:
    """ServingError, before any work, where obs has a column that no h5ad takes, such as one of mixed types, or two of
    one name.
    """
    if not adata.obs.columns.is_unique:
        twice = adata.obs.columns[adata.obs.columns.duplicated()][0]
        raise ServingError(
            f"The AnnData's obs has several columns {str(twice)!r}; rename all but one of them."
        )
    obs = adata.obs if adata.isbacked else _without_missing_text(adata.obs)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), nullable_text():
        warnings.filterwarnings("ignore", "Observation names are not unique")
        for position, name in enumerate(obs.columns):
            if is_numeric_dtype(obs.dtypes.iloc[position]):
                continue  # always written; of a million cells each other column takes 0.6 to 0.8 s
            alone = obs.iloc[:, [position]]
            try:
                write_anndata(
                    Path(folder) / "obs.h5ad", AnnData(obs=alone), convert_strings_to_categoricals=False
                )
            except (TypeError, ValueError, NotImplementedError) as error:
                raise ServingError(
                    f"The AnnData's obs column {str(name)!r} cannot be written to an .h5ad; mend or drop it."
                ) from error


def _writable(adata: AnnData) -> AnnData:
    """The AnnData, or one of the same arrays whose text columns lack nothing."""
    obs, var = _without_missing_text(adata.obs), _without_missing_text(adata.var)
    if adata.isbacked or (obs is adata.obs and var is adata.var):
        return adata
    raw = adata.raw
    return AnnData(
        adata.X,
        obs=obs,
        var=var,
        uns=adata.uns,
        obsm=dict(adata.obsm),
        varm=dict(adata.varm),
        layers=dict(adata.layers),
        obsp=dict(adata.obsp),
        varp=dict(adata.varp),
        raw=None if raw is None else {"X": raw.X, "var": raw.var, "varm": dict(raw.varm)},
    )


def _without_missing_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Text columns with missing values as categories, which may lack a value in an h5ad; all others as they are."""
    lacking = [name for name, values in frame.items() if is_object_dtype(values) and values.isna().any()]
    if not lacking:
        return frame
    found = frame.copy(deep=False)
    for name in lacking:
        found[name] = frame[name].astype("category")
    return found


def nullable_text() -> AbstractContextManager[None]:
    """Inside, anndata writes pandas' nullable strings as such, which versions before 0.11 cannot read; by default it
    refuses them.
    """
    return anndata.settings.override(allow_write_nullable_strings=True)


def is_h5ad_file(source: object) -> bool:
    """Whether all of the source can be kept by copying one file."""
    if not isinstance(source, str | Path) or is_url(str(source)):
        return False
    return Path(source).suffix.lower() == ".h5ad" and Path(source).is_file()
