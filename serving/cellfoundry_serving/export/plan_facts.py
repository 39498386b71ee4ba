"""What a TensorRT plan is bound to, as written beside it, and whether that fits a machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.layout import PLAN_METADATA_FILE
from cellfoundry_serving.export.tensorrt_api import flavour

FACTS = (
    "architecture",
    "info",
    "precision",
    "tensorrt",
    "gpu",
    "compute_capability",
    "profiles",
    "built",
    "plan_sha256",
)


class Machine(NamedTuple):
    """TensorRT and GPU of a machine.

    Attributes:
        tensorrt: name and version, such as ``tensorrt 11.0.1.2``.
        gpu: the GPU's name; None where there is none.
        compute_capability: such as ``9.0``; None where there is no GPU.
    """

    tensorrt: str
    gpu: str | None
    compute_capability: str | None


def this_machine(trt: ModuleType) -> Machine:
    """Facts about the current CUDA device, as torch sees it."""
    if not torch.cuda.is_available():
        return Machine(flavour(trt), None, None)
    major, minor = torch.cuda.get_device_capability()
    return Machine(flavour(trt), torch.cuda.get_device_name(), f"{major}.{minor}")


def read_plan_facts(folder: Path) -> dict[str, Any]:
    """What stands beside the plan; ServingError where it is missing or damaged."""
    path = folder / PLAN_METADATA_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {name: facts[name] for name in FACTS}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ServingError(f"{path}: missing or damaged; export the model again.") from error


def check_plan(facts: dict[str, Any], plan: bytes, path: Path) -> None:
    """Raises ServingError where ``plan``, the bytes of ``path``, is not the one that ``facts`` were written for."""
    if hashlib.sha256(plan).hexdigest() != facts["plan_sha256"]:
        raise ServingError(
            f"{path}: not the plan that {PLAN_METADATA_FILE} tells of; export the model again."
        )


def check_machine(facts: dict[str, Any], machine: Machine, plan: Path) -> None:
    """Raises ServingError where a plan of these ``facts`` cannot run on ``machine``."""
    if machine.gpu is None:
        raise ServingError(
            "The tensorrt engine needs an NVIDIA GPU, and torch finds none; use another engine."
        )
    if facts["tensorrt"] != machine.tensorrt:
        raise ServingError(
            f"{plan} was built with {facts['tensorrt']}, installed is {machine.tensorrt}; export the model again."
        )
    if facts["gpu"] is None:
        raise ServingError(
            f"{plan} was built on a machine without a GPU, to check the graph; export the model again on this one."
        )
    built_for = (facts["gpu"], facts["compute_capability"])
    if built_for != (machine.gpu, machine.compute_capability):
        raise ServingError(
            f"{plan} was built for {facts['gpu']} (compute capability {facts['compute_capability']}), this is "
            f"{machine.gpu} ({machine.compute_capability}); export the model again on it."
        )
