"""Export: what other tools read is what the store holds."""

from __future__ import annotations

import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.store import export

from .conftest import N_GENES, MakeStore, normalised, random_cells

N_CELLS = 4500


@pytest.fixture(scope="module")
def cells() -> CellBatch:
    return random_cells(N_CELLS, seed=8, mean_nnz=20)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_store: MakeStore, cells: CellBatch) -> Path:
    return make_store(tmp_path_factory.mktemp("export") / "store", cells, chunk_nnz=5000)


def as_matrix(cells: CellBatch) -> sp.csr_matrix:
    return sp.csr_matrix((cells.counts, cells.gene_ids, cells.indptr), shape=(len(cells), N_GENES))


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_anndata_holds_the_same_counts_and_obs(
    store: Path, cells: CellBatch, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"cells{suffix}"
    for _ in range(2):  # an earlier export is replaced
        export(store, out)
    adata = anndata.read_h5ad(out) if suffix == ".h5ad" else anndata.read_zarr(out)
    assert isinstance(adata.X, sp.csr_matrix)
    assert adata.X.dtype == np.float32
    assert (as_matrix(cells) != adata.X).nnz == 0
    assert adata.var_names[7] == "GENE7"
    assert adata.obs_names[4321] == "cell4321"
    assert adata.obs["tissue"].iloc[:2].tolist() == ["pancreas", "blood"]
    assert adata.obs["tissue"].isna().sum() == N_CELLS // 3
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_parquet_holds_one_line_an_entry(store: Path, cells: CellBatch, tmp_path: Path) -> None:
    export(store, tmp_path / "cells.parquet")
    long = pd.read_parquet(tmp_path / "cells.parquet")
    assert list(long.columns) == ["cell", "gene", "count"]
    row = long["cell"].astype(str).str.removeprefix("cell").astype(int)
    gene = long["gene"].astype(str).str.removeprefix("GENE").astype(int)
    actual = sp.csr_matrix((long["count"], (row, gene)), shape=(N_CELLS, N_GENES))
    assert (actual != as_matrix(cells)).nnz == 0
    obs = pd.read_parquet(tmp_path / "cells.obs.parquet")
    assert obs["cell"].tolist() == [f"cell{number}" for number in range(N_CELLS)]
    assert obs["tissue"].iloc[:2].tolist() == ["pancreas", "blood"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.obs.parquet", "cells.parquet"]


def test_normalised_values_stay_float32(tmp_path: Path, make_store: MakeStore) -> None:
    cells = normalised(random_cells(50, seed=2))
    store = make_store(tmp_path / "store", cells, values="float32", profile="fast")
    export(store, tmp_path / "cells.h5ad")
    assert (as_matrix(cells) != anndata.read_h5ad(tmp_path / "cells.h5ad").X).nnz == 0
    export(store, tmp_path / "cells.parquet")
    long = pq.read_table(tmp_path / "cells.parquet")
    assert long.column_names == ["cell", "gene", "value"]
    np.testing.assert_array_equal(long["value"].to_numpy(), cells.counts)


def test_exporting_takes_memory_for_a_block_and_not_for_the_store(
    tmp_path: Path, store: Path, cells: CellBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["cellfoundry_data.store.export"], "BLOCK_NNZ", 12_000)
    steps: list[int] = []
    export(store, tmp_path / "cells.h5ad", progress=lambda label, done, total: steps.append(done))
    blocks = np.diff([0, *steps])
    assert len(blocks) > 7
    assert (np.diff(cells.indptr[[0, *steps]]) <= 12_000).all()
    assert steps[-1] == N_CELLS
    assert (as_matrix(cells) != anndata.read_h5ad(tmp_path / "cells.h5ad").X).nnz == 0


def test_a_failed_export_leaves_nothing(store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"suffix must be one of \.h5ad, \.zarr, \.parquet"):
        export(store, tmp_path / "cells.loom")
    with pytest.raises(DataError, match="does not exist"):
        export(store, tmp_path / "missing" / "cells.h5ad")

    def interrupt(label: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    for suffix in (".h5ad", ".zarr", ".parquet"):
        with pytest.raises(KeyboardInterrupt):
            export(store, tmp_path / f"cells{suffix}", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_obs_that_pandas_or_anndata_would_trip_over(tmp_path: Path, make_store: MakeStore) -> None:
    obs = {
        "primary": pa.array([True, None, False]),
        "cell": pa.array(["x", "y", None]).dictionary_encode(),
        "age": pa.array([1, None, 3]),
        "_index": pa.array([4, 5, 6]),
        "_index_": pa.array([7, 8, 9]),
    }
    store = make_store(tmp_path / "store", random_cells(3, seed=1), shards=1, more_obs=obs)
    for suffix in (".h5ad", ".zarr"):
        export(store, tmp_path / f"cells{suffix}")
        read = anndata.read_h5ad if suffix == ".h5ad" else anndata.read_zarr
        exported = read(tmp_path / f"cells{suffix}").obs
        assert exported["primary"].isna().tolist() == [False, True, False]
        assert exported["primary"].dropna().tolist() == [True, False]
        assert exported["age"].dropna().tolist() == [1, 3]
        assert exported["_index__"].tolist() == [4, 5, 6]
        assert exported["_index_"].tolist() == [7, 8, 9]
        assert exported.index.tolist() == ["cell0", "cell1", "cell2"]
    export(store, tmp_path / "cells.parquet")
    table = pd.read_parquet(tmp_path / "cells.obs.parquet")
    assert table["cell"].tolist() == ["cell0", "cell1", "cell2"]
    assert table["cell_"].dropna().tolist() == ["x", "y"]


def test_a_nul_character_is_refused_where_hdf5_cannot_hold_it(tmp_path: Path, make_store: MakeStore) -> None:
    obs = {"batch": pa.array(["a\0b", "c", "d"])}
    store = make_store(tmp_path / "store", random_cells(3, seed=1), shards=1, more_obs=obs)
    with pytest.raises(DataError, match="holds a NUL character"):
        export(store, tmp_path / "cells.h5ad")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "store"]
    for name in ("cells.zarr", "cells.parquet"):
        export(store, tmp_path / name)


def test_a_folder_of_something_else_is_never_replaced(store: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.zarr").mkdir()
    (tmp_path / "thesis.zarr" / "chapter.txt").write_text("text")
    itself = tmp_path / "store.zarr"
    itself.symlink_to(store)
    for out in (tmp_path / "thesis.zarr", itself):
        with pytest.raises(DataError, match=r"is a folder and no AnnData \.zarr, so it is not replaced"):
            export(store, out)
    assert (tmp_path / "thesis.zarr" / "chapter.txt").is_file()
