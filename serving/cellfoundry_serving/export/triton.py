"""A model of a Triton Inference Server repository: NAME/config.pbtxt and NAME/VERSION/model.onnx or model.plan.

An ONNX model is batched raggedly: each request is one cell, Triton joins those that wait, of any lengths. Of a TensorRT
plan a request is a whole batch: Triton cannot pad cells of different lengths, and of packed ones it limits the number,
while the plan's profiles limit their tokens.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from cellfoundry_model.config import ModelConfig
from cellfoundry_serving.atomic import atomic_path, check_parent
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.tensorrt_profiles import LAYOUTS, Layout, profiles_for

CONFIG_NAME = "config.pbtxt"
# Attention on a CPU holds cells x heads x tokens x tokens numbers, and Triton counts cells, not tokens.
MAX_BATCH = 16
QUEUE_DELAY_US = 2000


def triton_configs(name: str, format: str, config: ModelConfig, vocabulary_sha256: str) -> dict[str, str]:
    """config.pbtxt of an export of ``format`` ("onnx" or "tensorrt") of a model, under ``name``, by form of batches.

    That of ONNX is "ragged"; a plan is "packed" or "padded", which is known only once it is built. All name the
    vocabulary, which positions are counted in: versions of one model have the same.
    """
    width = 4 * config.encoder_width
    if format == "onnx":
        texts = {"ragged": onnx_config(name, width)}
    else:
        texts = {
            layout: plan_config(name, width, layout, len(profiles_for(layout, config.n_positions)))
            for layout in LAYOUTS
        }
    vocabulary = (
        f'parameters {{ key: "vocabulary_sha256" value {{ string_value: "{vocabulary_sha256}" }} }}\n'
    )
    return {form: text + vocabulary for form, text in texts.items()}


def check_triton(target: Path, texts: Collection[str]) -> None:
    """Raises ServingError where a model with one of ``texts`` as its config.pbtxt cannot be put at ``target``."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", target.name):
        raise ServingError(f"{target}: Triton names models after folders; use letters, digits, _ and -.")
    check_parent(target)
    if not target.exists():
        return
    if not (target / CONFIG_NAME).is_file():
        raise ServingError(
            f"{target} exists and is no model of a Triton repository; give a new folder in one."
        )
    if (target / CONFIG_NAME).read_text(encoding="utf-8") not in texts:
        raise ServingError(
            f"{target / CONFIG_NAME} is of another kind of model or vocabulary, or was changed; give a new folder."
        )
    check_parent(target / "1")


@contextmanager
def new_version(target: Path, text: str, engine_file: Path) -> Iterator[Path]:
    """Copies ``engine_file`` beside ``target`` and, unless the body raises, makes it the next version there.

    Args:
        target: folder of a model in a repository; a new one gets ``text`` as its config.pbtxt.
        text: see ``check_triton``, which raises ServingError here too.
        engine_file: model.plan, or model.onnx in the ragged form.

    Yields:
        The version's folder, which is there once the body is done.
    """
    check_triton(target, [text])
    version = target / str(1 + max((int(path.name) for path in versions(target)), default=0))
    is_new = not target.exists()
    with atomic_path(target if is_new else version) as partial:
        folder = partial / version.name if is_new else partial
        folder.mkdir(parents=True)
        shutil.copyfile(engine_file, folder / engine_file.name)
        if is_new:
            (partial / CONFIG_NAME).write_text(text, encoding="utf-8")
        yield version


def versions(target: Path) -> list[Path]:
    """Folders of versions, which are numbers."""
    return [path for path in target.iterdir() if path.name.isdecimal()] if target.exists() else []


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


def plan_config(name: str, width: int, layout: Layout, profiles: int) -> str:
    """config.pbtxt of a plan with ``profiles`` optimisation profiles.

    All are named: of those Triton picks by the request's shape, but where none is named it knows the first one only.
    """
    named = ", ".join(f'"{index}"' for index in range(profiles))
    dims, lengths = ("-1", "cu_seqlens") if layout == "packed" else ("-1, -1", "length")
    type_ = "TYPE_INT32" if layout == "packed" else "TYPE_INT64"
    return f"""name: "{name}"
backend: "tensorrt"
max_batch_size: 0
instance_group [ {{ kind: KIND_GPU profile: [ {named} ] }} ]
input [
  {{ name: "value" data_type: TYPE_FP32 dims: [ {dims} ] }},
  {{ name: "position" data_type: TYPE_INT64 dims: [ {dims} ] }},
  {{ name: "{lengths}" data_type: {type_} dims: [ -1 ] }}
]
output [
  {{ name: "cell_embedding" data_type: TYPE_FP32 dims: [ -1, {width} ] }}
]
"""
