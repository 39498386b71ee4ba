"""Real TensorRT where it is installed; TensorRT-RTX parses and builds without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export import export_model
from cellfoundry_serving.export.tensorrt_api import import_tensorrt


def tensorrt_is_installed() -> bool:
    try:
        import_tensorrt()
    except ServingError:
        return False
    return True


def test_without_tensorrt_the_extra_is_named(model_dir: Path, tmp_path: Path) -> None:
    if tensorrt_is_installed():
        pytest.skip("TensorRT is installed")
    with pytest.raises(ServingError, match=r"pip install 'cellfoundry\[tensorrt\]'"):
        export_model(model_dir, tmp_path / "out", "tensorrt")
    assert list(tmp_path.iterdir()) == []


def test_the_graph_parses_and_builds(model_dir: Path, tmp_path: Path) -> None:
    if not tensorrt_is_installed():
        pytest.skip("no TensorRT is installed")
    report = export_model(model_dir, tmp_path / "out", "tensorrt")
    assert report.bytes > 10_000
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.plan",
        "model.plan.json",
        "vocab.tsv",
    ]
    if torch.cuda.is_available():
        assert open_engine(tmp_path / "out").name == "tensorrt"
    else:
        assert "no GPU here" in report.summary()
        with pytest.raises(ServingError, match="needs an NVIDIA GPU"):
            open_engine(tmp_path / "out")
