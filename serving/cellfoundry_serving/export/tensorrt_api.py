"""Which TensorRT is installed: ``tensorrt``, or ``tensorrt_rtx`` (same API, also builds without a GPU)."""

from __future__ import annotations

import importlib
from types import ModuleType

from cellfoundry_serving.errors import ServingError

# The last name is the RTX module where only its bindings wheel is installed.
MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")


def import_tensorrt() -> ModuleType:
    """The first TensorRT module that imports; ServingError naming the extra where there is none."""
    for name in MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ServingError("TensorRT is not installed; install it with: pip install 'cellfoundry[tensorrt]'.")


def flavour(trt: ModuleType) -> str:
    """Name and version that an engine file is bound to, such as ``tensorrt_rtx 1.7.1.116``."""
    return f"{trt.__name__.removesuffix('_bindings')} {trt.__version__}"
