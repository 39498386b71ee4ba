"""Which implementation of an op runs: the Triton twin or the torch reference.

Default: Triton for fp32, fp16 and bf16 tensors on a CUDA device where triton is installed, the reference
    elsewhere.
``CELLFOUNDRY_KERNELS=triton`` or ``=torch`` forces one (Triton on CPU tensors then needs
``TRITON_INTERPRET=1``). ``torch.compile`` reads the variable when it traces.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

VARIABLE = "CELLFOUNDRY_KERNELS"
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def use_triton(tensor: Tensor) -> bool:
    """Whether the Triton twin runs on ``tensor``.

    Raises:
        ValueError: The variable holds anything but triton or torch, or forces Triton where it cannot run.
    """
    return _decide(tensor.device.type, tensor.dtype in TRITON_DTYPES)


def _decide(device: str, has_twin: bool) -> bool:
    choice = os.environ.get(VARIABLE, "")
    if choice not in ("", "triton", "torch"):
        raise ValueError(f"{VARIABLE} is {choice!r}: set it to triton or torch, or unset it.")
    if choice == "torch" or not has_twin:
        return False
    installed = find_spec("triton") is not None
    if choice == "":
        return installed and device == "cuda"
    if not installed:
        raise ValueError(f"{VARIABLE} is 'triton', but triton is not installed: install it, or unset it.")
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"{VARIABLE} is 'triton', but a tensor is on {device}: move it to a CUDA device, set "
            "TRITON_INTERPRET=1 (slow, for tests), or unset the variable."
        )
    return True


# The answer is a constant of a traced graph: reading the environment in it would break the graph in two. This is all
# that torch.compiler.assume_constant_result does (torch 2.11 to 2.13), which imports torch._dynamo first: 1.1 s of CPU.
_decide._dynamo_marked_constant = True  # type: ignore[attr-defined]
