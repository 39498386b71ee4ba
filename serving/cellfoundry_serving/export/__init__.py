"""Exports of a model directory for other engines."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellfoundry_model.head_files import HEAD_FILES, HEAD_HASH
from cellfoundry_serving.atomic import check_parent, remove
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.layout import (
    CONFIG_FILE,
    ONNX_FILE,
    PLAN_FILE,
    PLAN_METADATA_FILE,
    VOCABULARY_FILE,
)

if TYPE_CHECKING:
    from cellfoundry_serving.engines.torch import TorchEngine
    from cellfoundry_serving.export.check import Comparison

FORMATS = ("onnx", "tensorrt")


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote, and how it compares with torch.

    Attributes:
        file: the engine's file.
        bytes: its size.
        comparison: with torch on the same cells; None where the engine cannot run on this machine.
    """

    file: Path
    bytes: int
    comparison: Comparison | None

    def summary(self) -> str:
        """One line for people."""
        checked = self.comparison.summary() if self.comparison else "not checked: no GPU here to run it"
        return f"{self.file.name}, {self.bytes / 2**20:,.1f} MiB, {checked}"


def export_model(model_dir: str | Path, out_dir: str | Path, format: str = "onnx") -> ExportReport:
    """Exports the cell-embedding graph of a model directory; ``out_dir`` then opens with ``open_engine``.

    The file is written under a temporary name, run on random cells beside torch, and put in place only if it
    agrees. ``out_dir`` is a new folder, or one that holds the same model
    (``model_dir`` itself, an older export).

    Raises:
        ServingError: unknown format, TensorRT missing, a folder with something else in it, or a failed check.
        ModelError: a damaged model directory.
    """
    source, out = Path(model_dir), Path(out_dir)
    if format not in FORMATS:
        raise ServingError(f"Unknown export format {format!r}; use one of {', '.join(FORMATS)}.")
    check_parent(out)
    from cellfoundry_serving.engines.torch import TorchEngine

    reference = TorchEngine(source, device="cpu")
    with temporary_directory(out) as staging:
        for name in (CONFIG_FILE, VOCABULARY_FILE, *(HEAD_FILES if HEAD_HASH in reference.info else ())):
            shutil.copyfile(source / name, staging / name)
        check_target(staging, out)
        stage = stage_onnx if format == "onnx" else stage_tensorrt
        comparison = stage(reference, staging)
        put_in_place(staging, out)
    file = out / (ONNX_FILE if format == "onnx" else PLAN_FILE)
    return ExportReport(file, file.stat().st_size, comparison)


def stage_onnx(reference: TorchEngine, staging: Path) -> Comparison:
    """Writes model.onnx and runs it beside torch."""
    from cellfoundry_serving.engines.onnx import CPU_PROVIDER, OnnxEngine
    from cellfoundry_serving.export.check import FP32_BAR, check_against
    from cellfoundry_serving.export.onnx import write_onnx

    write_onnx(reference.loaded, staging / ONNX_FILE)
    return check_against(reference, OnnxEngine(staging, CPU_PROVIDER), FP32_BAR)


def stage_tensorrt(reference: TorchEngine, staging: Path) -> Comparison | None:
    """Writes model.plan and what it is bound to; runs it beside torch where there is a GPU."""
    import torch

    from cellfoundry_serving.engines.tensorrt import TensorRTEngine
    from cellfoundry_serving.export.check import FP16_BAR, check_against
    from cellfoundry_serving.export.onnx import metadata, write_onnx
    from cellfoundry_serving.export.tensorrt import build_plan
    from cellfoundry_serving.export.tensorrt_api import flavour, import_tensorrt

    trt = import_tensorrt()
    graph = staging / "graph.onnx"
    write_onnx(reference.loaded, graph, torch.float16)
    (staging / PLAN_FILE).write_bytes(build_plan(trt, graph))
    graph.unlink()
    facts = metadata(reference.loaded) | {"built_with": flavour(trt)}
    (staging / PLAN_METADATA_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if not torch.cuda.is_available():
        return None
    return check_against(reference, TensorRTEngine(staging), FP16_BAR)


@contextmanager
def temporary_directory(out: Path) -> Iterator[Path]:
    """A folder beside ``out``, removed at the end whatever happens."""
    staging = out.with_name(f".{out.name}.{os.getpid()}.partial")
    staging.mkdir()
    try:
        yield staging
    finally:
        remove(staging)


def check_target(staging: Path, out: Path) -> None:
    """Raises ServingError where ``out`` holds anything but the same model."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not all(
        (out / name).is_file() and filecmp.cmp(staging / name, out / name, shallow=False)
        for name in (CONFIG_FILE, VOCABULARY_FILE)
    ):
        raise ServingError(f"{out} exists and holds something else than this model; give a new folder.")


def put_in_place(staging: Path, out: Path) -> None:
    """The engine's file comes last, so that a reader never finds it without what belongs to it."""
    out.mkdir(exist_ok=True)
    for name in (CONFIG_FILE, VOCABULARY_FILE, *HEAD_FILES, PLAN_METADATA_FILE, PLAN_FILE, ONNX_FILE):
        if (staging / name).exists():
            (staging / name).replace(out / name)
