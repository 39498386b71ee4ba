"""Engines: one interface, and the choice between them."""

from __future__ import annotations

from pathlib import Path

from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.layout import ONNX_FILE, PLAN_FILE, WEIGHTS_FILE

FILES = {WEIGHTS_FILE: "torch", ONNX_FILE: "onnx", PLAN_FILE: "tensorrt"}  # in the order of "auto"
ENGINES = ("auto", *FILES.values())
PRECISIONS = ("fp32", "bf16")


def open_engine(model_dir: str | Path, engine: str = "auto", precision: str = "fp32") -> Engine:
    """Opens a model directory, or the directory of an export, with the asked engine.

    "auto" takes torch where the weights are (every output, no padding), else ONNX Runtime, else TensorRT;
    ``Engine.why`` says what runs.

    Raises:
        ServingError: an unknown name, a directory that lacks the engine's file, or an engine that cannot
            run here.
        ModelError: a damaged model directory.
    """
    folder = Path(model_dir)
    if engine not in ENGINES:
        raise ServingError(f"Unknown engine {engine!r}; use one of {', '.join(ENGINES)}.")
    if precision not in PRECISIONS:
        raise ServingError(f"Unknown precision {precision!r}; use one of {', '.join(PRECISIONS)}.")
    if not folder.is_dir():
        raise ServingError(
            f"{folder}: no such model directory; give a folder made by `model import` or training."
        )
    if engine == "auto":
        chosen = open_engine(folder, choose(folder), precision)
        chosen.why += f"; auto prefers {' to '.join(FILES.values())}"
        return chosen
    if engine != "torch" and precision != "fp32":
        raise ServingError(
            f"The {engine} engine runs exports in their own precision; use --engine torch for {precision}."
        )
    if engine == "onnx":
        require(folder, ONNX_FILE, "onnx")
        from cellfoundry_serving.engines.onnx import OnnxEngine

        return OnnxEngine(folder)
    if engine == "tensorrt":
        require(folder, PLAN_FILE, "tensorrt")
        from cellfoundry_serving.engines.tensorrt import TensorRTEngine

        return TensorRTEngine(folder)
    from cellfoundry_serving.engines.torch import TorchEngine

    return TorchEngine(folder, "bf16" if precision == "bf16" else "fp32")


def choose(folder: Path) -> str:
    """The engine that "auto" takes for what lies in ``folder``."""
    for file, name in FILES.items():
        if (folder / file).is_file():
            return name
    raise ServingError(f"{folder}: none of {', '.join(FILES)} is in it; give a model directory or an export.")


def require(folder: Path, file: str, format_: str) -> None:
    """Raises ServingError with the command to run where an export is missing."""
    if not (folder / file).is_file():
        raise ServingError(
            f"{folder} has no {file}; make it with "
            f"`cellfoundry model export {folder} --format {format_} --out DIR` and use DIR."
        )
