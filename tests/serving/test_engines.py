from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.embedder import Output
from cellfoundry_model.errors import ModelError
from cellfoundry_serving.engines import onnx as onnx_module
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import POOLS, Engine
from cellfoundry_serving.errors import ServingError

BAR = 1e-5


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("target", ["t4", "f1", "a5"])
def test_onnx_gives_what_torch_gives_alone_and_in_company(
    engine: Engine, onnx_dir: Path, cells: CellBatch, pool: str, target: str
) -> None:
    exported = open_engine(onnx_dir)
    expected = engine.encode(cells, pool=pool, target=target)
    together = exported.encode(cells, pool=pool, target=target)
    alone = [
        exported.encode(cells.select(np.array([row])), pool=pool, target=target) for row in range(len(cells))
    ]
    assert together.shape == (len(cells), *exported.shape("cell", pool))
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
    exported = open_engine(onnx_dir)
    np.testing.assert_allclose(
        exported.encode(cells, **conventions), engine.encode(cells, **conventions), atol=BAR, rtol=0
    )


def test_auto_says_why(model_dir: Path, onnx_dir: Path) -> None:
    assert open_engine(model_dir).name == "torch"
    assert open_engine(onnx_dir).name == "onnx"
    assert "CPUExecutionProvider" in open_engine(onnx_dir).why
    assert "auto: of torch, tensorrt, onnx it is the first whose file is there" in open_engine(model_dir).why


def test_missing_export_names_the_command(model_dir: Path) -> None:
    with pytest.raises(ServingError, match=r"`cellfoundry model export .* --format onnx --out DIR`"):
        open_engine(model_dir, "onnx")


def test_onnx_refuses_what_it_cannot_compute(onnx_dir: Path, cells: CellBatch) -> None:
    with pytest.raises(ServingError, match="--engine torch for bf16"):
        open_engine(onnx_dir, "onnx", "bf16")
    with pytest.raises(ServingError, match="Unknown pool 'mean'"):
        open_engine(onnx_dir).encode(cells, pool="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("provider", "name"), [("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")]
)
def test_a_provider_that_does_not_load_is_an_error(
    onnx_dir: Path, provider: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA loads on this machine")
    with pytest.raises(ServingError, match=f"could not load {name}"):
        open_engine(onnx_dir, provider=provider)
    assert capfd.readouterr() == ("", "")


def test_a_provider_is_onnx_runtimes(model_dir: Path, onnx_dir: Path) -> None:
    assert open_engine(onnx_dir, provider="cpu").why.endswith("auto: a provider of ONNX Runtime is asked for")
    with pytest.raises(ServingError, match="Unknown provider 'rocm'; use one of cpu, cuda, tensorrt"):
        open_engine(onnx_dir, provider="rocm")
    with pytest.raises(ServingError, match="not for torch"):
        open_engine(model_dir, "torch", provider="cpu")


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


def test_an_export_beside_another_models_config_is_refused(onnx_dir: Path, tmp_path: Path) -> None:
    for section, name in (("info", "weights_sha256"), ("architecture", "bin_alpha")):
        folder = tmp_path / section
        shutil.copytree(onnx_dir, folder)
        config = json.loads((folder / "config.json").read_text())
        config[section][name] = 2.0
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ServingError, match=r"config\.json: not the model of model\.onnx; export"):
            open_engine(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        open_engine(folder)


@pytest.mark.parametrize("output", ["gene", "expression"])
def test_onnx_decodes_what_torch_decodes_alone_and_in_company(
    engine: Engine, onnx_dir: Path, cells: CellBatch, output: Output
) -> None:
    exported = open_engine(onnx_dir)
    expected = engine.encode(cells, output=output)
    together = exported.encode(cells, output=output)
    alone = [exported.encode(cells.select(np.array([row])), output=output) for row in range(len(cells))]
    assert together.shape == (len(cells), *engine.shape(output, "all"))
    np.testing.assert_allclose(together, expected, atol=BAR, rtol=BAR)
    np.testing.assert_allclose(np.concatenate(alone), expected, atol=BAR, rtol=BAR)
    assert np.isnan(together).reshape(9, -1).all(axis=1).tolist() == [row in (3, 8) for row in range(9)]


def test_a_decoder_of_another_model_is_refused(onnx_dir: Path, tmp_path: Path, cells: CellBatch) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(onnx_dir, folder)
    decoder = onnx.load(folder / "decoder.onnx")
    facts = json.loads(decoder.metadata_props[0].value)
    facts["info"]["weights_sha256"] = "0" * 64
    decoder.metadata_props[0].value = json.dumps(facts)
    onnx.save(decoder, folder / "decoder.onnx")
    with pytest.raises(ServingError, match=r"not the model of decoder\.onnx"):
        open_engine(folder).encode(cells, output="gene")


def test_names_and_folders_are_checked(tmp_path: Path) -> None:
    for arguments, message in (
        ((tmp_path / "no",), "no such model directory"),
        ((tmp_path,), r"none of model.safetensors, model.plan, model.onnx"),
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
