from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import zarr
from anndata import AnnData

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest import ingest
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.store.cell_keys import cell_keys
from cellfoundry_data.store.format import OBS_CELL_NAME
from cellfoundry_data.store.reader import open_store
from cellfoundry_data.store.replace import replacing_store
from cellfoundry_data.store.writer import finish_store, start_store, write_shard
from cellfoundry_data.vocabulary import load
from cellfoundry_model.errors import ModelError
from cellfoundry_model.official import import_official
from cellfoundry_serving import encode as encode_module
from cellfoundry_serving.embed import embed
from cellfoundry_serving.encode import encode_source
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.parts import plan

NAN_WARNING = r"2 of 9 cells have no counts in the model's genes"


@pytest.fixture
def source(adata: AnnData, tmp_path: Path) -> Path:
    adata.uns["note"] = "kept"
    adata.layers["more"] = adata.X * 2
    adata.write_h5ad(tmp_path / "source.h5ad")
    return tmp_path / "source.h5ad"


@pytest.fixture
def expected(engine: Engine, cells: CellBatch) -> np.ndarray:
    return engine.encode(cells)


def embed_with_warning(*arguments: Any, **options: Any) -> Any:
    with pytest.warns(UserWarning, match=NAN_WARNING):
        return embed(*arguments, **options)


def encode_with_warning(*arguments: Any, **options: Any) -> np.ndarray:
    with pytest.warns(UserWarning, match=NAN_WARNING):
        return encode_source(*arguments, **options)


def test_h5ad_keeps_the_source_and_adds_obsm(
    source: Path, model_dir: Path, tmp_path: Path, expected: np.ndarray
) -> None:
    summary = embed_with_warning(source, model_dir, tmp_path / "out.h5ad")
    assert (summary.shape, summary.empty_cells) == ((9, 128), 2)
    assert "9 x 128 float32" in str(summary)
    before, after = ad.read_h5ad(source), ad.read_h5ad(tmp_path / "out.h5ad")
    pd.testing.assert_frame_equal(before.obs, after.obs)
    assert (before.X != after.X).nnz == 0
    assert after.uns["note"] == "kept"
    assert after.uns["cellfoundry"]["pool"] == "all"
    assert "more" in after.layers
    np.testing.assert_allclose(after.obsm["X_cellfoundry"], expected, atol=1e-4, rtol=0)
    # In place is fine for .h5ad: nothing of the source is lost.
    embed_with_warning(source, model_dir, source)
    np.testing.assert_array_equal(ad.read_h5ad(source).obsm["X_cellfoundry"], after.obsm["X_cellfoundry"])


def test_a_warning_raised_as_an_error_does_not_cost_the_output(
    source: Path, model_dir: Path, tmp_path: Path, expected: np.ndarray
) -> None:
    with pytest.raises(UserWarning, match=NAN_WARNING):
        embed(source, model_dir, tmp_path / "out.npy")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-4, rtol=0)


def test_other_formats(source: Path, model_dir: Path, tmp_path: Path, expected: np.ndarray) -> None:
    for suffix in ("npy", "parquet", "zarr"):
        embed_with_warning(source, model_dir, tmp_path / f"out.{suffix}")
    frame = pd.read_parquet(tmp_path / "out.parquet")
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    for array in (
        np.load(tmp_path / "out.npy"),
        np.stack(frame["embedding"].to_list()),
        group["embedding"][:],
    ):
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected, atol=1e-4, rtol=0)
    names = [f"barcode{row}" for row in range(9)]
    assert frame["cell"].tolist() == group["cells"][:].tolist() == names
    assert frame["obs_cell"].tolist() == [f"c{row % 2}" for row in range(9)]
    assert frame["cell_type"].dtype == "category"
    assert group.attrs["cellfoundry"]["target"] == "t4"


def test_anndata_in_memory_is_left_as_it_was(
    adata: AnnData, engine: Engine, model_dir: Path, tmp_path: Path, expected: np.ndarray
) -> None:
    adata.obs["text"] = pd.Series(["x"] * 9, index=adata.obs_names, dtype=object)
    before = adata.copy()
    array = encode_with_warning(adata, engine)
    embed_with_warning(adata, model_dir, tmp_path / "out.h5ad")
    np.testing.assert_allclose(array, expected, atol=1e-4, rtol=0)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert "X_cellfoundry" not in adata.obsm
    assert (ad.read_h5ad(tmp_path / "out.h5ad").X != adata.X).nnz == 0


@pytest.mark.parametrize("output", ["gene", "expression"])
def test_gene_axis_outputs_stream_in_small_blocks(
    source: Path,
    model_dir: Path,
    tmp_path: Path,
    engine: Engine,
    cells: CellBatch,
    output: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "PART_CELLS", 4)
    monkeypatch.setattr(encode_module, "BLOCK_BYTES", 3 * 4 * 400 * (16 if output == "gene" else 1))
    done: list[int] = []
    for suffix in ("npy", "zarr"):
        embed_with_warning(
            source,
            model_dir,
            tmp_path / f"out.{suffix}",
            output=output,
            progress=lambda _label, cells_done, _total: done.append(cells_done),
        )
    expected = engine.encode(cells, output=output)
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    for array in (np.load(tmp_path / "out.npy"), group["embedding"][:]):
        np.testing.assert_allclose(array, expected, atol=1e-4, rtol=0)
    assert group["genes"][:].tolist() == list(engine.vocab_genes)
    assert sorted(set(done)) == [0, 3, 4, 7, 8, 9]


def test_expression_as_anndata_and_parquet(
    source: Path, model_dir: Path, tmp_path: Path, engine: Engine, cells: CellBatch
) -> None:
    expected = engine.encode(cells, output="expression")
    embed_with_warning(source, model_dir, tmp_path / "out.h5ad", output="expression")
    embed_with_warning(source, model_dir, tmp_path / "out.parquet", output="expression")
    after = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_allclose(after.X, expected, atol=1e-4, rtol=0)
    assert after.var_names.tolist() == list(engine.vocab_genes)
    assert after.obs["cell_type"].tolist() == ["alpha", "beta", "delta"] * 3
    table = pq.read_table(tmp_path / "out.parquet")
    np.testing.assert_allclose(np.stack(table["expression"].to_pylist()), expected, atol=1e-4, rtol=0)
    assert table.schema.metadata[b"genes"].decode().splitlines() == list(engine.vocab_genes)


def test_conventions_reach_the_engine(
    adata: AnnData, tmp_path: Path, engine: Engine, cells: CellBatch
) -> None:
    def check(got: np.ndarray, **conventions: Any) -> None:
        np.testing.assert_allclose(got, engine.encode(cells, **conventions), atol=1e-4, rtol=0)

    totals = cells.totals()
    check(
        encode_with_warning(adata, engine, pool="max", target="f2", input_type="bulk"),
        pool="max",
        target="f2",
        input_type="bulk",
        bulk_median=float(np.median(totals[totals > 0])),
    )
    check(encode_with_warning(adata, engine, pre_normalized="T"), pre_normalized="T")
    depth = np.linspace(100, 900, 9)
    np.save(tmp_path / "a.npy", np.hstack([adata.X.toarray(), depth[:, None]]))
    check(
        encode_with_warning(tmp_path / "a.npy", engine, pre_normalized="A", target="a1"),
        pre_normalized="A",
        target="a1",
        totals=depth,
    )
    adata.layers["counts"] = adata.X.copy()
    adata.X = sp.csr_matrix(adata.X.shape, dtype=np.float32)
    check(encode_with_warning(adata, engine, layer="counts"))


@pytest.mark.parametrize(
    ("out", "options", "error", "message"),
    [
        (
            "out.txt",
            {},
            ServingError,
            "unknown output format; use one of .h5ad, .npy, .parquet, .arrow, .zarr",
        ),
        ("out.h5ad", {"output": "gene"}, ServingError, "use one of .npy, .zarr"),
        ("no/out.npy", {}, ServingError, "folder of .* does not exist"),
        ("out.npy", {"pool": "mean"}, ModelError, "pool"),
        ("out.npy", {"target": "deep"}, ModelError, "target"),
        ("out.npy", {"output": "cells"}, ModelError, "output"),
        ("out.npy", {"input_type": "spatial"}, ModelError, "input type"),
        ("source.h5ad", {"output": "expression"}, ServingError, "is the source itself"),
        ("out.npy", {"engine": "onnx"}, ServingError, "cellfoundry model export"),
    ],
)
def test_mistakes_leave_nothing(
    source: Path,
    model_dir: Path,
    tmp_path: Path,
    out: str,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    before = source.read_bytes()
    with pytest.raises(error, match=message):
        embed(source, model_dir, tmp_path / out, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["source.h5ad"]
    assert source.read_bytes() == before


@pytest.mark.parametrize("suffix", ["h5ad", "npy", "parquet", "zarr"])
def test_a_failure_midway_keeps_the_older_output(
    adata: AnnData, model_dir: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"out.{suffix}"
    embed_with_warning(adata, model_dir, out)
    older = {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()}
    monkeypatch.setattr(plan, "PART_CELLS", 4)
    adata.X.data[-1] = 0.5
    with pytest.raises(DataError, match="already normalised"):
        embed(adata, model_dir, out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()} == older


def test_only_cells_without_counts(adata: AnnData, engine: Engine) -> None:
    adata.X = sp.csr_matrix(adata.X.shape, dtype=np.float32)
    with pytest.warns(UserWarning, match="9 of 9 cells"):
        assert np.isnan(encode_source(adata, engine)).all()
    with pytest.raises(ServingError, match="No row has counts"):
        encode_source(adata, engine, input_type="bulk")


def test_official_expectations_and_parts(shared: Path, tmp_path: Path) -> None:
    genes = load("scfoundation").genes
    csv = shared / "parity" / "baron_10cells.csv"
    import_official(shared / "parity" / "tiny.ckpt", tmp_path / "cell", vocab_genes=genes, part="cell")
    official = open_engine(tmp_path / "cell")
    expected = np.load(shared / "parity" / "expected_cell_all_t4.npy")
    np.testing.assert_allclose(encode_source(csv, official), expected, atol=1e-4, rtol=0)
    with pytest.warns(UserWarning, match="part 'cell' .* expression output is made for part gene"):
        encode_source(csv, official, output="expression")


@pytest.mark.usefixtures("ray_local")
def test_a_store_is_a_source(source: Path, model_dir: Path, tmp_path: Path, engine: Engine) -> None:
    store = tmp_path / "store"
    ingest([str(source)], str(store), vocab=str(model_dir / "vocab.tsv"), min_genes=1)
    embed(store, model_dir, tmp_path / "out.h5ad")
    after = ad.read_h5ad(tmp_path / "out.h5ad")
    opened = open_store(store)
    np.testing.assert_allclose(
        after.obsm["X_cellfoundry"], engine.encode(opened.read_cells(np.arange(7))), atol=1e-4, rtol=0
    )
    assert set(after.obs_names) <= {f"barcode{row}" for row in range(9)}
    with pytest.raises(DataError, match="store of raw counts"):
        encode_source(store, engine, pre_normalized="T")
    with pytest.raises(DataError, match="no column of totals"):
        encode_source(store, engine, pre_normalized="A")


def test_a_store_of_normalised_values_is_embedded_as_such(
    adata: AnnData, model_dir: Path, tmp_path: Path, engine: Engine
) -> None:
    vocab = load(model_dir / "vocab.tsv")
    cells, _ = next(SourceCells(adata, vocab).blocks())
    cells = cells.select(np.flatnonzero(np.diff(cells.indptr)))
    scaled = replace(cells, counts=np.log1p(cells.counts).astype(np.float32))
    store = tmp_path / "store"
    with replacing_store(store) as folder:
        start_store(folder, vocab)
        obs = pa.table({OBS_CELL_NAME: [f"cell{row}" for row in range(len(scaled))]})
        keys = cell_keys(0, scaled.row_ids)
        shard = write_shard(folder, "000000", scaled, keys, obs, values="float32")
        finish_store(folder, vocab, [shard], seed=0, qc={}, sources=[], values="float32")
    embedded = encode_source(store, engine, pre_normalized="T")
    np.testing.assert_allclose(embedded, engine.encode(scaled, pre_normalized="T"), atol=1e-4, rtol=0)
    with pytest.raises(DataError, match="store of normalised values"):
        encode_source(store, engine)


def test_a_folder_of_something_else_is_never_replaced(source: Path, model_dir: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.zarr"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("text")
    with pytest.raises(ServingError, match=r"thesis\.zarr is a folder and no earlier embedding"):
        embed(source, model_dir, thesis)
    assert (thesis / "chapter.txt").is_file()
