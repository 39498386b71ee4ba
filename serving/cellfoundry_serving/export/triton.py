"""A model of a Triton Inference Server repository: NAME/config.pbtxt and NAME/VERSION/model.onnx or model.plan.

An ONNX model is batched raggedly: each request is one cell, Triton joins those that wait, of any lengths. A TensorRT
plan takes padded batches, which Triton cannot make of cells of different lengths, so a request is a whole batch there.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from cellfoundry_serving.atomic import atomic_path, check_parent
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.layout import ONNX_FILE, PLAN_FILE
from cellfoundry_serving.export.ragged import write_ragged

CONFIG_NAME = "config.pbtxt"
# Attention on a CPU holds cells x heads x tokens x tokens numbers, and Triton counts cells, not tokens.
MAX_BATCH = 16
QUEUE_DELAY_US = 2000


def check_triton(target: Path) -> None:
    """Raises ServingError where a model cannot be put at ``target``, before any work is done."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", target.name):
        raise ServingError(f"{target}: Triton names models after folders; use letters, digits, _ and -.")
    check_parent(target)
    if target.exists() and not (target / CONFIG_NAME).is_file():
        raise ServingError(
            f"{target} exists and is no model of a Triton repository; give a new folder in one."
        )


def write_triton(engine_file: Path, target: Path, encoder_width: int, n_genes: int) -> Path:
    """Adds ``engine_file`` (model.onnx or model.plan) as the next version of ``target``; returns the version's folder.

    Raises:
        ServingError: ``target`` is of another engine or of another width, or cannot be written.
    """
    describe = plan_config if engine_file.name == PLAN_FILE else onnx_config
    text = describe(target.name, 4 * encoder_width)
    check_triton(target)
    if target.exists() and (target / CONFIG_NAME).read_text(encoding="utf-8") != text:
        raise ServingError(
            f"{target / CONFIG_NAME} is of another kind of model, or was changed; give a new folder."
        )
    version = 1 + max((int(path.name) for path in versions(target)), default=0)
    if target.exists():
        folder = target / str(version)
        with atomic_path(folder) as partial:
            write_version(engine_file, partial, n_genes)
        return folder
    with atomic_path(target) as partial:
        partial.mkdir()
        write_version(engine_file, partial / str(version), n_genes)
        (partial / CONFIG_NAME).write_text(text, encoding="utf-8")
    return target / str(version)


def versions(target: Path) -> list[Path]:
    """Folders of versions, which are numbers."""
    return [path for path in target.iterdir() if path.name.isdecimal()] if target.exists() else []


def write_version(engine_file: Path, folder: Path, n_genes: int) -> None:
    """The engine's file, under the name Triton looks for."""
    folder.mkdir()
    if engine_file.name == PLAN_FILE:
        shutil.copyfile(engine_file, folder / PLAN_FILE)
    else:
        write_ragged(engine_file, folder / ONNX_FILE, pad_position=n_genes + 2)


def onnx_config(name: str, width: int) -> str:
    """config.pbtxt of the ragged ONNX graph; ``length`` is counted by Triton, clients do not send it."""
    return f"""name: "{name}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY_US} }}
input [
  {{ name: "value" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }},
  {{ name: "position" data_type: TYPE_INT64 dims: [ -1 ] allow_ragged_batch: true }}
]
batch_input [
  {{ kind: BATCH_ELEMENT_COUNT target_name: "length" data_type: TYPE_INT32 source_input: "value" }}
]
output [
  {{ name: "cell_embedding" data_type: TYPE_FP32 dims: [ {width} ] }}
]
"""


def plan_config(name: str, width: int) -> str:
    """config.pbtxt of a plan; its optimisation profiles are chosen by the request's shape."""
    return f"""name: "{name}"
backend: "tensorrt"
max_batch_size: 0
input [
  {{ name: "value" data_type: TYPE_FP32 dims: [ -1, -1 ] }},
  {{ name: "position" data_type: TYPE_INT64 dims: [ -1, -1 ] }},
  {{ name: "length" data_type: TYPE_INT64 dims: [ -1 ] }}
]
output [
  {{ name: "cell_embedding" data_type: TYPE_FP32 dims: [ -1, {width} ] }}
]
"""
