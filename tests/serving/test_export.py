from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.errors import ModelError
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.engines.onnx import OnnxEngine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export import export_model
from cellfoundry_serving.export.check import BARS, check_against, checked_batches


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
    assert [comparison.output for comparison in report.comparisons] == ["cell", "gene", "expression"]
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
    cell_only = open_engine(tmp_path / "out")
    assert cell_only.encode(cells).shape == (9, 128)
    with pytest.raises(ServingError, match="cell embeddings only; use --engine torch for gene"):
        cell_only.encode(cells, output="gene")


def test_the_file_carries_its_origin_and_no_path(model_dir: Path, onnx_dir: Path) -> None:
    model = onnx.load(onnx_dir / "model.onnx")
    metadata = json.loads({prop.key: prop.value for prop in model.metadata_props}["cellfoundry"])
    assert metadata["info"] == open_engine(model_dir).info
    assert metadata["architecture"]["encoder_width"] == 32
    assert [attention.op_type for attention in model.graph.node].count("Attention") == 2
    assert str(Path(__file__).parents[2]).encode() not in (onnx_dir / "model.onnx").read_bytes()


def test_an_export_that_differs_is_refused(engine: Engine, onnx_dir: Path) -> None:
    with pytest.raises(ServingError, match=r"discarded: it is far from torch \(cell: max error 1.0e-03"):
        check_against(
            engine, ShiftedEngine(onnx_dir, "cpu"), BARS["fp32"], checked_batches(400, False), print
        )


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
