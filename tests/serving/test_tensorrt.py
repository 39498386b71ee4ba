"""Real TensorRT where it is installed; TensorRT-RTX parses and builds without a GPU."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export import export_model, tensorrt_api
from cellfoundry_serving.export.plan_facts import Machine, check_machine, check_plan, read_plan_facts
from cellfoundry_serving.export.tensorrt_api import import_tensorrt
from cellfoundry_serving.export.tensorrt_profiles import pick_profile, profiles_for
from cellfoundry_serving.export.timing_cache import load_timing_cache, save_timing_cache

from .conftest import tensorrt_is_installed


def test_without_tensorrt_the_extra_is_named(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_api, "MODULES", ("no_such_tensorrt",))
    with pytest.raises(ServingError, match=r"pip install 'cellfoundry\[tensorrt\]'"):
        export_model(model_dir, tmp_path / "out", "tensorrt")
    assert list(tmp_path.iterdir()) == []


def test_the_graph_parses_and_builds(model_dir: Path, tmp_path: Path) -> None:
    if not tensorrt_is_installed():
        pytest.skip("no TensorRT is installed")
    report = export_model(model_dir, tmp_path / "out", "tensorrt", timing_cache=tmp_path / "times")
    assert report.files[0].stat().st_size > 10_000
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "MODEL_CARD.md",
        "config.json",
        "model.plan",
        "model.plan.json",
        "vocab.tsv",
    ]
    facts = read_plan_facts(tmp_path / "out")
    check_plan(facts, report.files[0].read_bytes(), report.files[0])
    if torch.cuda.is_available():
        assert open_engine(tmp_path / "out").name == "tensorrt"
    else:
        assert "no GPU here" in report.summary()
        with pytest.raises(ServingError, match="needs an NVIDIA GPU"):
            open_engine(tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*no-ops in TensorRT-RTX:DeprecationWarning")
def test_a_timing_cache_is_made_and_read_again(tmp_path: Path) -> None:
    if not tensorrt_is_installed():
        pytest.skip("no TensorRT is installed")
    trt = import_tensorrt()
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    for _ in range(2):
        config = builder.create_builder_config()
        load_timing_cache(config, tmp_path / "new" / "times")
        save_timing_cache(config, tmp_path / "new" / "times")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["times"]


FACTS = {
    "architecture": {},
    "info": {},
    "precision": "fp16",
    "tensorrt": "tensorrt 11.0.1",
    "gpu": "NVIDIA H200",
    "compute_capability": "9.0",
    "profiles": [],
    "built": "The plan takes packed batches, without padding.",
    "plan_sha256": hashlib.sha256(b"plan").hexdigest(),
}
H200 = Machine("tensorrt 11.0.1", "NVIDIA H200", "9.0")


@pytest.mark.parametrize(
    ("facts", "machine", "message"),
    [
        ({}, H200._replace(gpu=None), "needs an NVIDIA GPU"),
        (
            {},
            H200._replace(tensorrt="tensorrt 10.14.1"),
            "built with tensorrt 11.0.1, installed is tensorrt 10.14.1",
        ),
        (
            {},
            H200._replace(gpu="NVIDIA L4", compute_capability="8.9"),
            r"built for NVIDIA H200 .*this is NVIDIA L4",
        ),
        (
            {},
            H200._replace(compute_capability="9.1"),
            r"this is NVIDIA H200 \(9\.1\); export the model again on it",
        ),
        ({"gpu": None, "compute_capability": None}, H200, "built on a machine without a GPU"),
    ],
)
def test_a_plan_is_bound_to_gpu_and_version(facts: dict[str, None], machine: Machine, message: str) -> None:
    check_machine(FACTS, H200, Path("model.plan"))
    with pytest.raises(ServingError, match=message) as caught:
        check_machine(FACTS | facts, machine, Path("model.plan"))
    assert str(caught.value).count(". ") == 0  # one sentence


def test_a_plan_is_bound_to_its_facts() -> None:
    check_plan(FACTS, b"plan", Path("model.plan"))
    with pytest.raises(
        ServingError, match=r"model\.plan: not the plan that model\.plan\.json tells of; export"
    ):
        check_plan(FACTS, b"another model's plan", Path("model.plan"))


@pytest.mark.parametrize("text", [None, "", "[]", '{"tensorrt": "tensorrt 11.0.1"}'])
def test_damaged_plan_facts_are_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "model.plan.json").write_text(text)
    with pytest.raises(ServingError, match=r"model\.plan\.json: missing or damaged; export the model again"):
        read_plan_facts(tmp_path)


def test_auto_passes_over_a_plan_that_cannot_run_here(onnx_dir: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    both = tmp_path / "both"
    shutil.copytree(onnx_dir, both)
    (both / "model.plan").write_bytes(b"")
    (both / "model.plan.json").write_text(json.dumps(FACTS))
    assert "auto: model.plan cannot run here (" in open_engine(both).why
    (both / "model.onnx").unlink()
    with pytest.raises(ServingError):
        open_engine(both)


@pytest.mark.parametrize("positions", [3, 402, 512, 513, 8192, 19_266, 40_000])
def test_every_cell_has_a_profile_that_takes_it(positions: int) -> None:
    profiles = profiles_for("padded", positions)
    assert profiles[-1].max_tokens == positions
    assert sorted(profiles, key=lambda profile: profile.max_tokens) == profiles
    for tokens in {3, 17, 512, 513, positions} & set(range(positions + 1)):
        profile = profiles[pick_profile(profiles, tokens)]
        smallest, usual, largest = profile.shapes()["value"]
        assert smallest[1] <= tokens <= largest[1]
        assert all(a <= b <= c for a, b, c in zip(smallest, usual, largest, strict=True))
        assert profile.max_cells * profile.max_tokens <= 40_000
