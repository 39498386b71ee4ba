"""What is embedded: several sources as one, any range of them; and what is never overwritten."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from forty_cells import N_CELLS, run

from cellfoundry_data.store_cells import open_cells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.embed import embed
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError

pytestmark = pytest.mark.usefixtures("small_parts")


def test_a_folder_of_several_formats_is_one_source(
    atlas: Path, model_dir: Path, tmp_path: Path, engine: Engine
) -> None:
    adata = ad.read_h5ad(atlas)
    folder = tmp_path / "donors"
    folder.mkdir()
    adata[:13].copy().write_h5ad(folder / "a.h5ad")
    adata[13:20].to_df().to_csv(folder / "b.csv")
    columns = adata[20:].copy()
    columns.X = columns.X.tocsc()  # read through a temporary file, not row by row
    columns.write_h5ad(folder / "c.h5ad")
    run(atlas, model_dir, tmp_path / "whole.npy")
    run(folder, model_dir, tmp_path / "out.h5ad")
    run([folder / "c.h5ad", folder / "a.h5ad"], model_dir, tmp_path / "two.npy")
    whole, joined = np.load(tmp_path / "whole.npy"), ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_allclose(joined.obsm["X_cellfoundry"], whole, atol=1e-6, rtol=0)
    np.testing.assert_allclose(
        np.load(tmp_path / "two.npy"), whole[[*range(20, 40), *range(13)]], atol=1e-6, rtol=0
    )
    assert joined.obs["source"].tolist() == ["a.h5ad"] * 13 + ["b.csv"] * 7 + ["c.h5ad"] * 20
    assert joined.obs["source_row"].tolist() == [*range(13), *range(7), *range(20)]
    assert joined.obs_names.tolist() == adata.obs_names.tolist()
    with pytest.raises(ServingError, match="lies in the source"):
        embed(folder, model_dir, folder / "out.h5ad")
    with pytest.raises(ServingError, match="is the source itself"):
        embed([folder / "c.h5ad", folder / "a.h5ad"], model_dir, folder / "a.h5ad")


def test_any_range_of_joined_cells_is_what_the_whole_has_there(
    atlas: Path, tmp_path: Path, engine: Engine
) -> None:
    paths = []
    for name, rows in (("a", slice(0, 13)), ("b", slice(13, 14)), ("c", slice(14, 40))):
        paths.append(tmp_path / f"{name}.h5ad")
        ad.read_h5ad(atlas)[rows].copy().write_h5ad(paths[-1])
    vocabulary = Vocabulary(engine.vocab_genes)
    joined = open_cells(paths, vocabulary)
    whole, _ = next(open_cells(atlas, vocabulary).blocks(N_CELLS))
    for block_cells, start, stop in ((5, 0, 40), (100, 0, None), (1, 12, 15), (7, 3, 33), (4, 13, 14)):
        row = start
        for cells, totals in joined.blocks(block_cells, start, stop):
            expected = whole.select(np.arange(row, row + len(cells)))
            assert totals is None
            for name in ("indptr", "gene_ids", "counts", "row_ids"):
                np.testing.assert_array_equal(getattr(cells, name), getattr(expected, name))
            row += len(cells)
            assert len(cells) == block_cells or row == (stop or N_CELLS)
        assert row == (stop or N_CELLS)


def test_an_output_is_never_a_source_of_its_pattern(atlas: Path, model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "donors"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.h5ad").write_bytes(atlas.read_bytes())
    for pattern in (
        f"{folder}/*.h5ad",
        f"{tmp_path}/d*",
        f"{tmp_path}/**/*.h5ad",
        f"{folder}/../donors/?.h5ad",
    ):
        with pytest.raises(ServingError, match=r"is the source itself|would be one of the sources"):
            embed(pattern, model_dir, folder / "a.h5ad")
    for pattern in (f"{folder}/*.h5ad", f"{tmp_path}/d*"):  # the second time it would be a source
        with pytest.raises(ServingError, match=r"out\.h5ad would be one of the sources"):
            embed(pattern, model_dir, folder / "out.h5ad")
    assert sorted(path.name for path in folder.iterdir()) == ["a.h5ad", "b.h5ad"]
    assert (folder / "a.h5ad").read_bytes() == atlas.read_bytes()
    run(f"{folder}/[a].h5ad", model_dir, folder / "out.h5ad")


def test_a_folder_that_holds_the_source_is_not_replaced(atlas: Path, model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    run(atlas, model_dir, out, shards=True)
    with pytest.raises(ServingError, match=r"lies in .*out\.parquet and would be overwritten"):
        embed(out / "part-00000.parquet", model_dir, out)


def test_only_an_embedding_with_nothing_beside_it_is_replaced(
    atlas: Path, model_dir: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "mine.parquet"
    foreign.mkdir()
    pq.write_table(pa.table({"cell": ["a"]}), foreign / "part-00000.parquet")
    group = tmp_path / "group.zarr"
    zarr.open_group(group, mode="w").create_array("embedding", data=np.zeros(2))
    for name in ("ours.zarr", "ours.arrow"):
        run(atlas, model_dir, tmp_path / name, shards=name.endswith("arrow"))
        run(atlas, model_dir, tmp_path / name, shards=name.endswith("arrow"))
        (tmp_path / name / "precious.txt").write_text("text")
    for out in (foreign, group, tmp_path / "ours.zarr", tmp_path / "ours.arrow"):
        before = sorted(out.rglob("*"))
        with pytest.raises(ServingError, match="no earlier embedding"):
            embed(atlas, model_dir, out)
        assert sorted(out.rglob("*")) == before
