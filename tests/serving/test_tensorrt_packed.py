"""The packed TensorRT plan, as far as a machine without a GPU can tell.

Everything but TensorRT's own attention kernel runs in ONNX Runtime, whose attention gets a mask that keeps it within
cells. TensorRT-RTX parses the graph and takes the packed form, but has no kernel to build it for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.tokens import tokenize
from cellfoundry_serving.engines.base import POOLS
from cellfoundry_serving.engines.packed import pack_cells
from cellfoundry_serving.engines.tensorrt import PackedTensorRTEngine
from cellfoundry_serving.engines.torch import TorchEngine
from cellfoundry_serving.export import export_model
from cellfoundry_serving.export.check import BARS, compare
from cellfoundry_serving.export.onnx import PACKED_INPUTS, write_graph, write_packed_cell_graph
from cellfoundry_serving.export.packed_attention import attentions
from cellfoundry_serving.export.packed_graph import PackedCellGraph, pool_genes
from cellfoundry_serving.export.plan_io import check_tensors, network_tensors
from cellfoundry_serving.export.tensorrt import PlanBuilder
from cellfoundry_serving.export.tensorrt_api import import_tensorrt
from cellfoundry_serving.export.tensorrt_profiles import Profile, profiles_for

from .conftest import CONFIG, GENES, tensorrt_is_installed

needs_tensorrt = pytest.mark.skipif(not tensorrt_is_installed(), reason="no TensorRT is installed")


@pytest.fixture(scope="module")
def reference(model_dir: Path) -> TorchEngine:
    return TorchEngine(model_dir, device="cpu")


@pytest.fixture(scope="module")
def packed_graph(reference: TorchEngine, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The graph of a precision, written once."""
    folder = tmp_path_factory.mktemp("packed")

    @cache
    def written(precision: str) -> Path:
        path = folder / f"{precision}.onnx"
        write_packed_cell_graph(reference.loaded, path, precision)
        return path

    return written


def keep_within_cells(graph: Path, target: Path) -> None:
    """Gives every attention of the packed graph a mask: a token attends to those between the same bounds."""
    model = onnx.load(graph)
    attention = [node for node in model.graph.node if node.op_type == "Attention"]
    assert len(attention) == CONFIG.encoder_depth
    nodes = [
        helper.make_node("Shape", ["value"], ["mask/shape"]),
        helper.make_node("Squeeze", ["mask/shape"], ["mask/tokens"]),
        helper.make_node("Range", ["mask/zero", "mask/tokens", "mask/one"], ["mask/place"]),
        helper.make_node("Unsqueeze", ["mask/place", "mask/axis"], ["mask/column"]),
        helper.make_node("Cast", ["cu_seqlens"], ["mask/bounds"], to=onnx.TensorProto.INT64),
        helper.make_node("GreaterOrEqual", ["mask/column", "mask/bounds"], ["mask/is_behind"]),
        helper.make_node("Cast", ["mask/is_behind"], ["mask/behind"], to=onnx.TensorProto.INT64),
        helper.make_node("ReduceSum", ["mask/behind", "mask/axis"], ["mask/cell"], keepdims=1),
        helper.make_node("Transpose", ["mask/cell"], ["mask/row"]),
        helper.make_node("Equal", ["mask/cell", "mask/row"], ["mask/same"]),
    ]
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), f"mask/{name}")
        for name, value in (("zero", 0), ("one", 1), ("axis", [1]))
    )
    for node in attention:
        assert len(node.input) == 3
        node.input.append("mask/same")
    everything = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(everything)
    onnx.save(model, target)


class PlanOnOnnxRuntime:
    """Stands for a packed plan: refuses what its profiles would not take, computes in ONNX Runtime."""

    where = "ONNX Runtime"

    def __init__(self, path: Path, profiles: list[Profile]) -> None:
        self.genes, self.profiles = tuple(GENES), profiles
        self.facts: dict[str, Any] = {
            "precision": "fp32",
            "info": {},
            "architecture": {"encoder_width": CONFIG.encoder_width},
        }
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.runs: list[tuple[int, int]] = []

    def run(self, tokens: int, cells: int, inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        limits = next(profile for profile in self.profiles if tokens <= profile.max_tokens).shapes()
        assert limits.keys() == inputs.keys()
        for name, array in inputs.items():
            assert limits[name][0] <= array.shape <= limits[name][-1]
        self.runs.append((tokens, cells))
        return self.session.run(["cell_embedding"], inputs)[0]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("max_tokens", "max_cells"), [(4096, 128), (402, 128), (4096, 2)])
def test_the_packed_graph_gives_what_torch_gives(
    packed_graph: Callable[[str], Path],
    reference: TorchEngine,
    cells: CellBatch,
    tmp_path: Path,
    pool: Any,
    max_tokens: int,
    max_cells: int,
) -> None:
    """Within 1e-5, whoever shares a batch, down to cells of one gene and up to all genes."""
    keep_within_cells(packed_graph("fp32"), tmp_path / "masked.onnx")
    plan = PlanOnOnnxRuntime(tmp_path / "masked.onnx", [Profile("packed", max_tokens, max_cells)])
    engine = PackedTensorRTEngine(plan)  # type: ignore[arg-type]
    embedding, expected = (each.encode(cells, pool=pool) for each in (engine, reference))
    np.testing.assert_allclose(embedding, expected, atol=1e-5, rtol=1e-5)
    assert np.isnan(embedding).all(1).tolist() == [row in (3, 8) for row in range(9)]
    filled = np.diff(cells.indptr)[np.diff(cells.indptr) > 0]
    assert sum(cells for _, cells in plan.runs) == len(filled)
    assert sum(tokens for tokens, _ in plan.runs) == sum(filled + 2)  # nothing is padded
    assert "packed tokens" in engine.why


def test_half_precision_keeps_its_bar(
    packed_graph: Callable[[str], Path], reference: TorchEngine, cells: CellBatch, tmp_path: Path
) -> None:
    keep_within_cells(packed_graph("fp16"), tmp_path / "masked.onnx")
    plan = PlanOnOnnxRuntime(tmp_path / "masked.onnx", [Profile("packed", 4096, 128)])
    engine = PackedTensorRTEngine(plan)  # type: ignore[arg-type]
    filled = cells.select(np.flatnonzero(np.diff(cells.indptr)))
    compared = compare("cell", reference.encode(filled), engine.encode(filled))
    assert compared.passes(BARS["fp16"]), compared.summary()


def test_the_graph_itself_takes_all_tokens_as_one_cells(
    packed_graph: Callable[[str], Path], reference: TorchEngine, cells: CellBatch
) -> None:
    """As written for TensorRT, one cell a batch; with company attention reaches across, so it has to be kept."""
    expected = reference.encode(cells)
    for max_cells, agrees in ((1, True), (128, False)):
        plan = PlanOnOnnxRuntime(packed_graph("fp32"), [Profile("packed", 4096, max_cells)])
        embedding = PackedTensorRTEngine(plan).encode(cells)  # type: ignore[arg-type]
        assert np.allclose(embedding, expected, atol=1e-5, rtol=1e-5, equal_nan=True) is agrees


def test_cells_are_packed_with_t_and_s_first(cells: CellBatch) -> None:
    tokens = tokenize(cells, n_genes=CONFIG.n_genes)
    value_N, position_N, cu_seqlens = pack_cells(tokens, np.array([4, 0]))
    assert cu_seqlens.tolist() == [0, 39, 46]
    assert cu_seqlens.dtype == np.int32
    for cell, (start, end) in ((4, (0, 39)), (0, (39, 46))):
        genes = cells.gene_ids[cells.indptr[cell] : cells.indptr[cell + 1]]
        assert position_N[start:end].tolist() == [CONFIG.n_genes, CONFIG.n_genes + 1, *genes]
        last = tokens.cu_seqlens[cell + 1]
        assert value_N[start : start + 2].tolist() == tokens.value_N[last - 2 : last].tolist()


@pytest.mark.parametrize("longest", [1, 2, 3, 8, 9, 60])
def test_pooling_takes_cells_of_any_bounds(longest: int) -> None:
    """Cells of every length up to the longest, so that blocks of the pooling lie in, across and beside them."""
    counts = np.random.default_rng(longest).permutation(np.tile(np.arange(1, longest + 1), 3))
    end_B = torch.from_numpy(np.cumsum(counts + 2))
    first_B = end_B - torch.from_numpy(counts)
    x_ND = torch.randn(int(end_B[-1]), 4, generator=torch.Generator().manual_seed(0))
    maximum, mean = pool_genes(x_ND, first_B, end_B, longest)
    cells = [x_ND[first:end] for first, end in zip(first_B, end_B, strict=True)]
    torch.testing.assert_close(maximum, torch.stack([cell.amax(0) for cell in cells]), rtol=0, atol=0)
    torch.testing.assert_close(mean, torch.stack([cell.mean(0) for cell in cells]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("positions", [3, 402, 19_266, 40_000])
def test_packed_profiles_take_every_cell(positions: int) -> None:
    small, full = profiles_for("packed", positions)
    assert small.max_tokens < full.max_tokens >= positions
    for profile in (small, full):
        for smallest, usual, largest in profile.shapes().values():
            assert smallest <= usual <= largest
        assert profile.shapes()["cu_seqlens"][-1] == (profile.max_cells + 1,)


@needs_tensorrt
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_attention_of_the_network_is_packed(
    packed_graph: Callable[[str], Path], precision: str
) -> None:
    trt = import_tensorrt()
    builder = PlanBuilder(trt)
    network = builder.network(packed_graph(precision), "packed")
    found = attentions(trt, network)
    assert len(found) == CONFIG.encoder_depth
    head = CONFIG.encoder_width // CONFIG.encoder_heads
    for attention in found:
        assert attention.query_form == attention.key_value_form == trt.AttentionIOForm.PACKED_NHD
        assert attention.query_lengths.name == "cu_seqlens"
        assert attention.key_value_lengths.dtype == trt.int32
        shapes = [tuple(attention.get_input(index).shape) for index in range(3)]
        assert [*shapes, tuple(attention.get_output(0).shape)] == [(-1, CONFIG.encoder_heads, head)] * 4
        assert attention.get_input(0).dtype.name == {"fp16": "HALF", "bf16": "BF16"}[precision]
    # Nothing of cells x tokens x width: that would be padding to the longest cell.
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    shapes = [tuple(layer.get_output(index).shape) for layer in layers for index in range(layer.num_outputs)]
    assert not [shape for shape in shapes if len(shape) > 2 and list(shape).count(-1) > 1]
    profiles = profiles_for("packed", CONFIG.n_positions)
    ranges = [builder.optimization_profile(profile) for profile in profiles]
    tensors = network_tensors(network, ranges)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()} == {
        "value": ("FLOAT", (-1,)),
        "position": ("INT64", (-1,)),
        "cu_seqlens": ("INT32", (-1,)),
        "cell_embedding": ("FLOAT", (-1, 4 * CONFIG.encoder_width)),
    }
    assert tensors["value"].profiles[1] == ((3,), (24_576,), (32_768,))
    assert tensors["cu_seqlens"].profiles[1] == ((2,), (65,), (129,))
    check_tensors(tensors, profiles, CONFIG.encoder_width, "network")


@needs_tensorrt
def test_all_but_the_attention_builds_for_all_genes(tmp_path: Path) -> None:
    """With its attention left as one cell's: pooling over 19,264 genes is no burden to the compiler."""
    model = CellModel(replace(CONFIG, n_genes=19_264))
    example = (torch.ones(9), torch.zeros(9, dtype=torch.int64), torch.tensor([0, 5, 9], dtype=torch.int32))
    graph = PackedCellGraph(model, torch.float16)
    write_graph(graph, example, PACKED_INPUTS, ("cell_embedding",), {}, tmp_path / "graph.onnx")
    builder = PlanBuilder(import_tensorrt())
    network = builder.network(tmp_path / "graph.onnx", "padded")
    profiles = profiles_for("packed", model.config.n_positions)
    plan = builder.plan(network, profiles, CONFIG.encoder_width, tmp_path / "times")
    assert len(plan) < 40 * 2**20  # where the compiler unrolls chains of gathers it has hundreds of MiB


@needs_tensorrt
def test_where_packed_attention_has_no_kernel_the_plan_is_padded_and_says_so(
    model_dir: Path, tmp_path: Path
) -> None:
    if "rtx" not in import_tensorrt().__name__:
        pytest.skip("TensorRT-RTX 1.7 has no kernel; what this TensorRT builds depends on its GPU")
    report = export_model(model_dir, tmp_path / "out", "tensorrt")
    facts = json.loads((tmp_path / "out" / "model.plan.json").read_text())
    assert {profile["layout"] for profile in facts["profiles"]} == {"padded"}
    assert "padded batches: a packed one was tried first (TensorRT cannot build an engine" in report.built
    assert report.built.endswith(
        "for which no fused kernel is available on this target and no decomposition exists)."
    )
    assert report.built.count(". ") == 0  # one sentence
    assert report.built == facts["built"]
    assert report.built in report.summary()
    assert report.built in (tmp_path / "out" / "MODEL_CARD.md").read_text()


@needs_tensorrt
def test_a_version_without_packed_attention_gets_a_padded_plan(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 10.x, whose bindings lack the form."""
    monkeypatch.delattr(import_tensorrt(), "AttentionIOForm")
    report = export_model(model_dir, tmp_path / "out", "tensorrt")
    assert report.built.startswith("The plan takes padded batches: tensorrt")
    assert report.built.endswith("has no packed attention.")
