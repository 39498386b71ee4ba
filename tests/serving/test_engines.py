from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.engines import onnx as onnx_module
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import POOLS, Engine
from cellfoundry_serving.engines.onnx import CUDA_PROVIDER, OnnxEngine
from cellfoundry_serving.errors import ServingError

BAR = 1e-4


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("target", ["t4", "f1", "a5"])
def test_onnx_gives_what_torch_gives_alone_and_in_company(
    engine: Engine, onnx_dir: Path, cells: CellBatch, pool: str, target: str
) -> None:
    onnx = open_engine(onnx_dir)
    expected = engine.encode(cells, pool=pool, target=target)
    together = onnx.encode(cells, pool=pool, target=target)
    alone = [
        onnx.encode(cells.select(np.array([row])), pool=pool, target=target) for row in range(len(cells))
    ]
    assert together.shape == (len(cells), *onnx.shape("cell", pool))
    np.testing.assert_allclose(together, expected, atol=BAR, rtol=0)
    np.testing.assert_allclose(np.concatenate(alone), expected, atol=BAR, rtol=0)
    assert np.isnan(together).all(axis=1).tolist() == [row in (3, 8) for row in range(9)]


@pytest.mark.parametrize(
    "conventions",
    [
        {"input_type": "bulk", "bulk_median": 500.0},
        {"input_type": "bulk", "pre_normalized": "T"},
        {"pre_normalized": "T"},
        {"pre_normalized": "A", "totals": np.linspace(100, 900, 9)},
    ],
)
def test_onnx_follows_every_input_convention(
    engine: Engine, onnx_dir: Path, cells: CellBatch, conventions: dict[str, object]
) -> None:
    onnx = open_engine(onnx_dir)
    np.testing.assert_allclose(
        onnx.encode(cells, **conventions), engine.encode(cells, **conventions), atol=BAR, rtol=0
    )


def test_auto_says_why(model_dir: Path, onnx_dir: Path) -> None:
    assert open_engine(model_dir).name == "torch"
    assert open_engine(onnx_dir).name == "onnx"
    assert "CPUExecutionProvider" in open_engine(onnx_dir).why
    assert "auto prefers torch" in open_engine(model_dir).why


def test_missing_export_names_the_command(model_dir: Path) -> None:
    with pytest.raises(ServingError, match=r"`cellfoundry model export .* --format onnx --out DIR`"):
        open_engine(model_dir, "onnx")


def test_onnx_refuses_what_it_cannot_compute(onnx_dir: Path, cells: CellBatch) -> None:
    with pytest.raises(ServingError, match="--engine torch for gene"):
        open_engine(onnx_dir).encode(cells, output="gene")
    with pytest.raises(ServingError, match="--engine torch for bf16"):
        open_engine(onnx_dir, "onnx", "bf16")
    with pytest.raises(ServingError, match="Unknown pool 'mean'"):
        open_engine(onnx_dir).encode(cells, pool="mean")  # type: ignore[arg-type]


def test_a_provider_that_does_not_load_is_an_error(onnx_dir: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("CUDA loads on this machine")
    with pytest.raises(ServingError, match="could not load CUDAExecutionProvider"):
        OnnxEngine(onnx_dir, CUDA_PROVIDER)


def test_damaged_exports_are_refused_in_one_sentence(onnx_dir: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(onnx_dir, broken)
    (broken / "model.onnx").write_bytes((onnx_dir / "model.onnx").read_bytes()[:1000])
    with pytest.raises(ServingError, match="cannot open it; export the model again"):
        open_engine(broken)
    other = tmp_path / "other"
    shutil.copytree(onnx_dir, other)
    lines = (other / "vocab.tsv").read_text().splitlines()
    lines[1] = "NOT_THAT_GENE\t0"
    (other / "vocab.tsv").write_text("\n".join(lines))
    with pytest.raises(ServingError, match=r"not the genes of model\.onnx"):
        open_engine(other)


def test_names_and_folders_are_checked(tmp_path: Path) -> None:
    for arguments, message in (
        ((tmp_path / "no",), "no such model directory"),
        ((tmp_path,), r"none of model.safetensors, model.onnx, model.plan"),
        ((tmp_path, "jax"), "Unknown engine 'jax'"),
        ((tmp_path, "torch", "fp8"), "Unknown precision 'fp8'"),
    ):
        with pytest.raises(ServingError, match=message):
            open_engine(*arguments)


def test_onnx_on_cpu_refuses_a_cell_that_would_fill_memory(
    onnx_dir: Path, cells: CellBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_module, "MAX_SCORE_BYTES", 4 * 4 * 300**2)
    with pytest.raises(ServingError, match=r"402 tokens.*use --engine torch"):
        open_engine(onnx_dir).encode(cells)
