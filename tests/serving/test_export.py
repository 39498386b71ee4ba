from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import nn

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.errors import ModelError
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.engines.onnx import OnnxEngine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export import export_model, triton_files
from cellfoundry_serving.export.check import BARS, Comparison, check_against, checked_cells
from cellfoundry_serving.export.ragged import write_ragged

from .conftest import CONFIG


class ShiftedEngine(OnnxEngine):
    """An export that is slightly wrong."""

    def run(self, value_BL: np.ndarray, position_BL: np.ndarray, length_B: np.ndarray) -> np.ndarray:
        return super().run(value_BL, position_BL, length_B) + np.float32(1e-3)


def test_export_prints_nothing_and_reports_the_error(
    model_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], cells: CellBatch, engine: Engine
) -> None:
    (tmp_path / "repository").mkdir()
    report = export_model(model_dir, tmp_path / "out", triton=tmp_path / "repository" / "cell")
    assert report.triton == tmp_path / "repository" / "cell" / "1"
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "MODEL_CARD.md",
        "config.json",
        "decoder.onnx",
        "model.onnx",
        "vocab.tsv",
    ]
    assert [comparison.output for comparison in report.comparisons] == [
        *("cell", "gene", "expression"),
        "cell, joined as Triton does",
    ]
    assert all(comparison.min_cosine <= 1 for comparison in report.comparisons)
    assert "synthetic cells of 1 to 400 genes" in report.summary()
    assert all(comparison.max_error < 1e-5 for comparison in report.comparisons)
    assert "max error" in report.summary()
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    for fact in (
        "| encoder_width | 32 |",
        engine.info["weights_sha256"],
        "exported in fp32",
        "`decoder.onnx`",
        "| gene | 2 |",
    ):
        assert fact in card
    # Again in the same folder: the same model, so its files are replaced, and the decoder is not asked for.
    export_model(model_dir, tmp_path / "out", decoder=False)
    assert not (tmp_path / "out" / "decoder.onnx").exists()
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert f"The encoder, {encoder_parameters():,} parameters, exported in fp32" in card
    cell_only = open_engine(tmp_path / "out")
    assert cell_only.encode(cells).shape == (9, 128)
    with pytest.raises(ServingError, match="cell embeddings only; use --engine torch for gene"):
        cell_only.encode(cells, output="gene")


def encoder_parameters() -> int:
    model = CellModel(CONFIG)
    decoder = (model.decoder_embed, model.decoder, model.norm, model.to_expression)
    everything, unused = ([*part.parameters()] for part in (model, nn.ModuleList(decoder)))
    return sum(weights.numel() for weights in everything) - sum(weights.numel() for weights in unused)


def test_the_card_tells_of_every_engines_file(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan of TensorRT's would take its library: a file stands for it, staged as the real one is."""
    from cellfoundry_serving.export import tensorrt_files

    def stage_tensorrt(reference: Engine, staging: Path, *options: object) -> tensorrt_files.StagedPlan:
        (staging / "model.plan").write_bytes(b"plan")
        (staging / "model.plan.json").write_text("{}")
        compared = [Comparison("cell", 7, 1e-3, 2.0, 0.99995)]
        return tensorrt_files.StagedPlan("packed", "The plan takes packed batches.", compared)

    monkeypatch.setattr(tensorrt_files, "stage_tensorrt", stage_tensorrt)
    out = tmp_path / "out"
    orders = (("tensorrt", "onnx", "tensorrt"), ("onnx", "tensorrt"))
    for order in orders:
        for format_ in order:
            export_model(model_dir, out, format_, decoder=False)
        card = (out / "MODEL_CARD.md").read_text()
        assert card.count("\n## model.plan\n") == card.count("\n## model.onnx\n") == 1
        for fact in (
            "in fp16",
            "The plan takes packed batches.",
            "| 0.9999500 |",
            "in fp32",
            "`model.plan`",
            "`model.onnx`",
        ):
            assert fact in card
        shutil.rmtree(out)


def test_what_an_export_would_not_use_is_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"--calibrate is for int8, and this export is fp32; add"):
        export_model(model_dir, tmp_path / "out", calibrate=tmp_path / "none.h5ad")
    with pytest.raises(ServingError, match=r"--timing-cache is for TensorRT, and this export is onnx; use"):
        export_model(model_dir, tmp_path / "out", timing_cache=tmp_path / "times")
    assert list(tmp_path.iterdir()) == []


def test_a_triton_model_that_does_not_fit_leaves_nothing(model_dir: Path, tmp_path: Path) -> None:
    changed = tmp_path / "cell"
    changed.mkdir()
    (changed / "config.pbtxt").write_text("max_batch_size: 64")
    with pytest.raises(ServingError, match="another kind of model or vocabulary, or was changed"):
        export_model(model_dir, tmp_path / "out", decoder=False, triton=changed)
    assert [path.name for path in tmp_path.rglob("*")] == ["cell", "config.pbtxt"]


def test_a_ragged_graph_that_differs_is_refused_and_leaves_nothing(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_mixed(source: Path, target: Path, pad_position: int) -> None:
        """Cells change places: their first tokens are counted from the batch's end."""
        write_ragged(source, target, pad_position)
        graph = onnx.load(target)
        [node] = [node for node in graph.graph.node if node.op_type == "CumSum"]
        node.attribute.append(onnx.helper.make_attribute("reverse", 1))
        onnx.save(graph, target)

    monkeypatch.setattr(triton_files, "write_ragged", write_mixed)
    with pytest.raises(ServingError, match=r"far from torch .*as Triton does"):
        export_model(model_dir, tmp_path / "out", decoder=False, triton=tmp_path / "cell")
    assert list(tmp_path.iterdir()) == []


def test_the_file_carries_its_origin_and_no_path(model_dir: Path, onnx_dir: Path) -> None:
    model = onnx.load(onnx_dir / "model.onnx")
    metadata = json.loads({prop.key: prop.value for prop in model.metadata_props}["cellfoundry"])
    assert metadata["info"] == open_engine(model_dir).info
    assert metadata["architecture"]["encoder_width"] == 32
    assert [attention.op_type for attention in model.graph.node].count("Attention") == 2
    assert str(Path(__file__).parents[2]).encode() not in (onnx_dir / "model.onnx").read_bytes()


def test_an_export_that_differs_is_refused(engine: Engine, onnx_dir: Path) -> None:
    with pytest.raises(ServingError, match=r"discarded: it is far from torch \(cell: max error 1.0e-03"):
        check_against(engine, ShiftedEngine(onnx_dir, "cpu"), BARS["fp32"], checked_cells(400, False), print)


def test_nothing_is_left_after_a_failure(model_dir: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    for source, out, error, message in (
        (model_dir, taken, ServingError, "holds something else than this model"),
        (model_dir, tmp_path / "no" / "out", ServingError, "folder of .* does not exist"),
        (tmp_path / "nothing", tmp_path / "out", ModelError, "no such model directory"),
    ):
        with pytest.raises(error, match=message):
            export_model(source, out)
    with pytest.raises(ServingError, match="Unknown export format 'gguf'"):
        export_model(model_dir, tmp_path / "out", "gguf")
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "notes.txt"]
