"""ONNX Runtime's execution providers, by the names of ``--provider``."""

from __future__ import annotations

import torch

from cellfoundry_serving.errors import ServingError

# Each name's provider comes first; TensorRT hands the nodes it does not take to CUDA.
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}


def check_provider(name: str | None) -> None:
    """Raises ServingError for a name that is none; None stands for the default."""
    if name is not None and name not in PROVIDERS:
        raise ServingError(f"Unknown provider {name!r}; use one of {', '.join(PROVIDERS)}.")


def default_provider() -> str:
    """CUDA where torch sees a GPU, else CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
