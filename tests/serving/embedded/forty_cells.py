"""Embedding the forty cells of the fixture ``atlas``: to its end, or stopped on the way; and what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from cellfoundry_serving.embed import EmbedSummary, embed

N_CELLS = 40


def run(*arguments: Any, **options: Any) -> EmbedSummary:
    """``embed``, of whose sources one cell has no counts."""
    with pytest.warns(UserWarning, match="1 of .* cells have no counts"):
        return embed(*arguments, **options)


def content(out: Path) -> Any:
    """Every array of an output."""
    if out.suffix == ".npy":
        return {"embedding": np.load(out)}
    if out.suffix == ".zarr":
        group = zarr.open_group(out, mode="r")
        return {name: array[:] for name, array in group.arrays()}
    if out.suffix == ".h5ad":
        adata = ad.read_h5ad(out)
        return {"embedding": adata.obsm["X_cellfoundry"], "obs": adata.obs.astype(str).to_numpy()}
    table = pa.ipc.open_file(out).read_all() if out.suffix == ".arrow" else pq.read_table(out)
    return {"embedding": np.stack(table["embedding"].to_pylist()), "cell": table["cell"].to_numpy()}


def assert_same(out: Path, undisturbed: Path) -> None:
    found, expected = content(out), content(undisturbed)
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])


class Killed(BaseException):
    """Ends a call like a kill would: nothing of ours catches it."""


def killed_at(cells: int) -> Any:
    """A progress that dies when so many cells are told."""

    def progress(_label: str, done: int, _total: int) -> None:
        if done >= cells:
            raise Killed

    return progress


def stop_at(cells: int, *arguments: Any, **options: Any) -> None:
    with pytest.warns(UserWarning, match="the same command goes on from there"), pytest.raises(Killed):
        embed(*arguments, progress=killed_at(cells), **options)
