"""Exports below float32: each is exported once, with the decoder, and compared with torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import save_model
from cellfoundry_model.embedder import Output
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export import ExportReport, export_model, onnx_files
from cellfoundry_serving.export.check import Bar, compare, random_cells
from cellfoundry_serving.export.int8 import MARGIN, NOISE_LIMITS, ActivationRange, calibrate, write_int8
from cellfoundry_serving.export.real_cells import TARGETS, thin, varied, with_counts

from .conftest import CONFIG, GENES

PRECISIONS = {"fp16": 0.9999, "bf16": 0.9999, "int8": 0.999}
Exported = Callable[[str], tuple[Path, ExportReport]]


@pytest.fixture(scope="module")
def real_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty cells of 40 to 200 genes."""
    lengths = np.random.default_rng(0).integers(40, 200, 40)
    batch = random_cells(CONFIG.n_genes, tuple(lengths), seed=7)
    counts = sp.csr_matrix((batch.counts, batch.gene_ids, batch.indptr), shape=(len(batch), CONFIG.n_genes))
    adata = AnnData(counts)
    adata.obs_names = [f"cell{row}" for row in range(len(batch))]
    adata.var_names = list(GENES)
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def exported(model_dir: Path, real_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder, done = tmp_path_factory.mktemp("precisions"), {}

    def export(precision: str) -> tuple[Path, ExportReport]:
        if precision not in done:
            calibrate = real_source if precision == "int8" else None
            out = folder / precision
            done[precision] = out, export_model(model_dir, out, precision=precision, calibrate=calibrate)
        return done[precision]

    return export


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_is_compared_with_torch_and_says_so(exported: Exported, precision: str) -> None:
    out, report = exported(precision)
    assert sorted(path.name for path in out.iterdir()) == [
        "MODEL_CARD.md",
        "config.json",
        "decoder.onnx",
        "model.onnx",
        "vocab.tsv",
    ]
    assert [comparison.output for comparison in report.comparisons] == ["cell", "gene", "expression"]
    for comparison in report.comparisons:
        # Rounding shows: what was compared was not float32.
        assert 1e-5 < comparison.max_error < 0.3
        assert comparison.min_cosine >= PRECISIONS[precision]
    model = onnx.load(out / "model.onnx")
    facts = json.loads({prop.key: prop.value for prop in model.metadata_props}["cellfoundry"])
    assert (facts["precision"], report.precision) == (precision, precision)
    stored = {tensor.data_type for tensor in model.graph.initializer if tensor.dims == [32, 96]}
    kinds = {"fp16": "FLOAT16", "bf16": "BFLOAT16", "int8": "INT8"}
    assert stored == {onnx.TensorProto.DataType.Value(kinds[precision])}
    assert report.summary().startswith(f"{precision}, model.onnx ")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("output", ["cell", "gene", "expression"])
def test_the_engine_gives_what_torch_gives(
    engine: Engine, exported: Exported, precision: str, output: Output
) -> None:
    batch = random_cells(CONFIG.n_genes, (150, 60, 90), seed=8)
    got = open_engine(exported(precision)[0]).encode(batch, output=output)
    difference = compare(output, engine.encode(batch, output=output), got)
    assert difference.passes(Bar(np.inf, PRECISIONS[precision]))


def test_bf16_needs_a_gpu_and_the_engine_says_so(exported: Exported) -> None:
    with pytest.raises(
        ServingError, match="CPUExecutionProvider lacks kernels for its precision; use another"
    ):
        open_engine(exported("bf16")[0], provider="cpu")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    pool=st.sampled_from(["all", "max"]),
)
def test_any_company_of_cells_gives_torchs_embeddings(
    engine: Engine, onnx_dir: Path, lengths: list[int], seed: int, pool: str
) -> None:
    batch = random_cells(CONFIG.n_genes, tuple(lengths), seed)
    got = open_engine(onnx_dir, provider="cpu").encode(batch, pool=pool)
    np.testing.assert_allclose(got, engine.encode(batch, pool=pool), atol=1e-5, rtol=1e-5)


def test_int8_needs_real_cells(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="name a source with --calibrate"):
        export_model(model_dir, tmp_path / "out", precision="int8")
    empty = tmp_path / "empty.npy"
    np.save(empty, np.zeros((3, CONFIG.n_genes), np.float32))
    with pytest.raises(ServingError, match="fewer than two cells have counts"):
        export_model(model_dir, tmp_path / "out", precision="int8", calibrate=empty)
    with pytest.raises(ServingError, match="No precision 'int8' for tensorrt exports; use one of fp16, bf16"):
        export_model(model_dir, tmp_path / "out", "tensorrt", precision="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.npy"]


def test_an_export_below_its_bar_leaves_nothing(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(onnx_files.BARS, "fp16", Bar(np.inf, 1.1))
    with pytest.raises(
        ServingError, match=r"discarded: it is far from torch \(cell: .*take another precision"
    ):
        export_model(model_dir, tmp_path / "out", precision="fp16", decoder=False)
    assert list(tmp_path.iterdir()) == []


def test_a_map_whose_input_has_outliers_stays_float(tmp_path: Path) -> None:
    """A channel a thousand times the others: eight bits over its range would round those to nothing."""
    generator, width = np.random.default_rng(0), 32
    weights = {name: generator.normal(size=(width, width)).astype(np.float32) for name in ("first", "second")}
    constants = weights | {"outlier": np.r_[np.ones(width - 1), 0].astype(np.float32)}
    shape = [64, width]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["y"], "first_map"),
            helper.make_node("Mul", ["x", "outlier"], ["z"], "without_outlier"),
            helper.make_node("MatMul", ["z", "second"], ["w"], "second_map"),
            helper.make_node("Add", ["y", "w"], ["out"], "sum"),
        ],
        "maps",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    onnx.save(model, tmp_path / "maps.onnx")
    x = generator.normal(size=shape).astype(np.float32)
    x[0, -1] = 1000
    ranges = calibrate(tmp_path / "maps.onnx", [{"x": x}])
    for max_noise, kept in ((1000.0, 0), (NOISE_LIMITS[0], 1), (0.0, 2)):
        assert write_int8(tmp_path / "maps.onnx", tmp_path / "int8.onnx", ranges, max_noise) == (kept, 2)
        operators = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
        assert operators.count("QuantizeLinear") == 2 - kept


@pytest.mark.parametrize("channels", [1, 8])
def test_int8_with_outlier_activations_meets_its_bar_on_thinned_cells(
    real_source: Path, tmp_path: Path, channels: int
) -> None:
    """A LayerNorm that scales some channels twentyfold, as trained transformers do."""
    torch.manual_seed(0)
    model = CellModel(CONFIG)
    with torch.no_grad():
        model.encoder.layers[0].attention_norm.weight[:channels] *= 20
    save_model(model, GENES, tmp_path / "model", {})
    report = export_model(
        tmp_path / "model", tmp_path / "out", precision="int8", calibrate=real_source.as_uri(), decoder=False
    )
    assert report.comparisons[0].min_cosine >= 0.9995
    torch_engine, exported = open_engine(tmp_path / "model"), open_engine(tmp_path / "out")
    others = random_cells(CONFIG.n_genes, tuple(range(40, 200, 8)), seed=11)
    for share in (0.5, 0.2, 0.1, 0.05):
        cells = with_counts(thin(others, share, seed=3))
        for target in ("t3.5", "t4", "t5"):
            expected = torch_engine.encode(cells, target=target)
            difference = compare("cell", expected, exported.encode(cells, target=target))
            assert difference.min_cosine >= PRECISIONS["int8"]


def test_thinning_draws_molecules() -> None:
    batch = random_cells(CONFIG.n_genes, (400, 1, 200), seed=2)
    thinned = thin(batch, 0.25, seed=0)
    assert len(thinned) == 3
    assert thinned.totals()[0] == pytest.approx(0.25 * batch.totals()[0], rel=0.2)
    assert np.all(np.diff(thinned.indptr) <= np.diff(batch.indptr))
    assert thinned.counts.min() >= 1
    calibration = varied(batch)
    assert {cells.target for cells in calibration} <= set(TARGETS)
    assert sum(len(cells.batch) for cells in calibration) >= 3


def test_int8_keeps_more_in_float_where_it_misses_its_bar(
    model_dir: Path, real_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "NOISE_LIMITS", (1.0, 0.0))
    monkeypatch.setattr(onnx_files, "SEARCHED_BAR", Bar(1e-5, 0.999))
    report = export_model(model_dir, tmp_path / "out", precision="int8", calibrate=real_source, decoder=False)
    assert report.comparisons[0].max_error < 1e-5
    assert "8 of 8 linear maps stay float32" in report.summary()
    assert "holds for cells like these" in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert report.comparisons[0].cells >= 20


def test_the_range_always_holds_zero_and_its_noise_is_that_of_rounding() -> None:
    seen = ActivationRange()
    values = np.random.default_rng(0).uniform(2, 10, 100_000).astype(np.float32)
    seen.see(values)
    assert (seen.low, seen.zero_point) == (0.0, 0)
    assert seen.scale * 255 == pytest.approx(MARGIN * values.max(), rel=1e-6)
    rounded = np.rint(values / seen.scale) * seen.scale
    relative = np.sqrt(np.square(rounded - values).mean() / np.square(values).mean())
    assert seen.noise == pytest.approx(relative, rel=0.05)
