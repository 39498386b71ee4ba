"""Engines: one interface, and the choice between them."""

from __future__ import annotations

import os
from pathlib import Path

from cellfoundry_model.checkpoint import read_config
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.layout import CARD_FILE, CONFIG_FILE, ONNX_FILE, PLAN_FILE, WEIGHTS_FILE

FILES = {"torch": WEIGHTS_FILE, "tensorrt": PLAN_FILE, "onnx": ONNX_FILE}  # in the order of "auto"
ENGINES = ("auto", *FILES)
PRECISIONS = ("fp32", "bf16")
MAX_CARD = 65_536  # characters of a card that are kept


def open_engine(
    model_dir: str | Path, engine: str = "auto", precision: str = "fp32", provider: str | None = None
) -> Engine:
    """Opens a model directory, or the directory of an export, with the asked engine.

    "auto" takes the first of torch (every output, no padding), TensorRT and ONNX Runtime whose file is there and
    that this machine can run; ``Engine.why`` says what runs, and why.

    Args:
        model_dir: see above.
        engine: "auto", "torch", "tensorrt" or "onnx".
        precision: "fp32" or "bf16", for torch; an export has its own.
        provider: "cpu", "cuda" or "tensorrt", what ONNX Runtime runs on; by default CUDA where torch sees a GPU.

    Raises:
        ServingError: an unknown name, a directory that lacks the engine's file, or an engine or provider that
            cannot run here.
        ModelError: a damaged model directory.
    """
    folder = Path(model_dir)
    opened = _open(folder, engine, precision, provider)
    opened.sizes = read_config(folder / CONFIG_FILE)[0].to_dict()
    opened.card = read_card(folder)
    return opened


def _open(folder: Path, engine: str, precision: str, provider: str | None) -> Engine:
    if engine not in ENGINES:
        raise ServingError(f"Unknown engine {engine!r}; use one of {', '.join(ENGINES)}.")
    if precision not in PRECISIONS:
        raise ServingError(f"Unknown precision {precision!r}; use one of {', '.join(PRECISIONS)}.")
    if not folder.is_dir():
        raise ServingError(
            f"{folder}: no such model directory; give a folder made by `model import` or training."
        )
    if engine == "auto":
        name, reason = (
            choose(folder) if provider is None else ("onnx", "a provider of ONNX Runtime is asked for")
        )
        chosen = _open(folder, name, precision, provider)
        chosen.why += f"; auto: {reason}"
        return chosen
    if engine != "torch" and precision != "fp32":
        raise ServingError(
            f"The {engine} engine runs exports in their own precision; use --engine torch for {precision}."
        )
    if engine != "onnx" and provider is not None:
        raise ServingError(f"--provider is for ONNX Runtime, not for {engine}; use --engine onnx.")
    if engine == "onnx":
        require(folder, ONNX_FILE, "onnx")
        from cellfoundry_serving.engines.onnx import OnnxEngine

        return OnnxEngine(folder, provider)
    if engine == "tensorrt":
        require(folder, PLAN_FILE, "tensorrt")
        from cellfoundry_serving.engines.tensorrt import open_plan

        return open_plan(folder)
    from cellfoundry_serving.engines.torch import TorchEngine

    return TorchEngine(folder, "bf16" if precision == "bf16" else "fp32")


def choose(folder: Path) -> tuple[str, str]:
    """The engine that "auto" takes, and why; a plan counts only where this machine can run it."""
    found = [name for name, file in FILES.items() if (folder / file).is_file()]
    if not found:
        files = ", ".join(FILES.values())
        raise ServingError(f"{folder}: none of {files} is in it; give a model directory or an export.")
    if found[0] != "tensorrt":
        order = ", ".join(FILES)
        return found[0], f"of {order} it is the first whose file is there"
    from cellfoundry_serving.engines.tensorrt import why_not_here

    obstacle = why_not_here(folder)
    if not obstacle:
        return "tensorrt", f"{PLAN_FILE} was built for this GPU"
    if "onnx" not in found:
        raise ServingError(obstacle)
    reason = obstacle.rstrip(".").replace(
        f"{folder}{os.sep}", ""
    )  # clients are told of it, and not where it is
    return "onnx", f"{PLAN_FILE} cannot run here ({reason})"


def read_card(folder: Path) -> str:
    """The text of the folder's MODEL_CARD.md, empty where there is none that can be read."""
    try:
        with (folder / CARD_FILE).open(encoding="utf-8", errors="replace") as card:
            return card.read(MAX_CARD)
    except OSError:
        return ""


def require(folder: Path, file: str, format_: str) -> None:
    """Raises ServingError with the command to run where an export is missing."""
    if not (folder / file).is_file():
        raise ServingError(
            f"{folder} has no {file}; make it with "
            f"`cellfoundry model export {folder} --format {format_} --out DIR` and use DIR."
        )
