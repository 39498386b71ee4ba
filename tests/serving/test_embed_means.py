"""Means by group, chosen genes and shards, and options that do not fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pyarrow as pa
import pytest
from forty_cells import N_CELLS, assert_same, content, run, stop_at

from cellfoundry_serving.embed import embed
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError

pytestmark = pytest.mark.usefixtures("small_parts")


def test_mean_gene_embeddings_of_chosen_genes_by_group(
    atlas: Path, model_dir: Path, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHECKPOINT_S", "CHECKPOINT_SHARE"):
        monkeypatch.setattr(f"cellfoundry_serving.parts.means.{name}", 0)
    chosen = [engine.vocab_genes[at] for at in (7, 3, 200)]
    genes_file = tmp_path / "genes.txt"
    genes_file.write_text("\n".join(chosen) + "\n")
    options = {"output": "gene", "mean_by": "cell_type"}
    every = {"output": "gene", "genes": genes_file}
    run(atlas, model_dir, tmp_path / "every.zarr", **every)
    run(atlas, model_dir, tmp_path / "all.npy", output="gene")
    per_cell = content(tmp_path / "every.zarr")
    assert per_cell["genes"].tolist() == chosen
    np.testing.assert_array_equal(per_cell["embedding"], np.load(tmp_path / "all.npy")[:, [7, 3, 200]])

    out = tmp_path / "means.zarr"
    stop_at(25, atlas, model_dir, out, genes=",".join(chosen), **options)
    with pytest.warns(UserWarning, match="1 of 40 cells have no counts .*; they are in no mean"):
        summary = embed(atlas, model_dir, out, genes=",".join(chosen), **options)
    assert summary.cells_before >= 16
    assert "4 x 3 x 16 float32, means of 38 of 40 cells" in str(summary)
    means = content(out)
    types = [f"type {number}" for number in range(4)]
    assert means["groups"].tolist() == types
    assert means["n_cells"].tolist() == [10, 10, 9, 9]  # one has no counts, one no type
    cells = ad.read_h5ad(atlas).obs["cell_type"].astype(object).to_numpy()
    for group, name in enumerate(types):
        rows = per_cell["embedding"][cells == name].astype(np.float64)
        np.testing.assert_allclose(means["embedding"][group], np.nanmean(rows, axis=0), atol=1e-7, rtol=0)
    run(atlas, model_dir, tmp_path / "undisturbed.zarr", genes=chosen, **options)
    assert_same(out, tmp_path / "undisturbed.zarr")
    run(atlas, model_dir, tmp_path / "means.h5ad", output="expression", mean_by="cell_type")
    assert ad.read_h5ad(tmp_path / "means.h5ad").obs_names.tolist() == types


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "gene", "mean_by": "typ"}, r"--mean-by typ: obs of the source has cell_type; name one"),
        (
            {"output": "gene", "genes": "A1CF,NOPE,NADA"},
            r"--genes: NOPE, NADA are not among the model's 400 genes",
        ),
        ({"output": "gene", "genes": "A1CF,A1CF"}, "names A1CF twice"),
        ({"output": "gene", "genes": " , "}, "names no gene"),
        ({"num_gpus": 1.0}, "--num-gpus is of each Ray worker and there are none; add --workers N"),
        ({"genes": "A1CF"}, "Cell embeddings have no gene axis"),
        ({"shards": True}, "only .parquet and .arrow can be a folder of shards"),
        ({"mean_by": "cell_type", "shards": True}, "only .parquet and .arrow"),
    ],
)
def test_wrong_options_leave_nothing(
    atlas: Path, model_dir: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ServingError, match=message):
        embed(atlas, model_dir, tmp_path / "out.npy", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["atlas.h5ad"]


def test_shards_hold_the_rows_in_order(
    atlas: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellfoundry_serving.outputs.tables.SHARD_BYTES", 15 * 4 * 128)
    run(atlas, model_dir, tmp_path / "single.parquet")
    for suffix in ("parquet", "arrow"):
        out = tmp_path / f"out.{suffix}"
        for _ in range(2):  # the second time over the first
            run(atlas, model_dir, out, shards=True)
        assert sorted(path.name for path in out.iterdir()) == [f"part-0000{n}.{suffix}" for n in range(3)]
    assert_same(tmp_path / "out.parquet", tmp_path / "single.parquet")
    tables = [pa.ipc.open_file(path).read_all() for path in sorted((tmp_path / "out.arrow").iterdir())]
    assert pa.concat_tables(tables)["cell"].to_pylist() == [f"c{row}" for row in range(N_CELLS)]
    (tmp_path / "out.arrow" / "mine.txt").write_text("text")
    with pytest.raises(ServingError, match=r"out\.arrow is a folder and no earlier embedding"):
        embed(atlas, model_dir, tmp_path / "out.arrow")


def test_a_file_of_genes_that_is_no_text_is_told(atlas: Path, model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "genes.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ServingError, match=r"genes\.bin is no text in UTF-8"):
        embed(atlas, model_dir, tmp_path / "out.npy", output="gene", genes=tmp_path / "genes.bin")
