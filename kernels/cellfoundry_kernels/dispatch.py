"""Which implementation of an op runs: the Triton twin or the torch reference.

Default: Triton for fp32, fp16 and bf16 tensors on a CUDA device where triton is installed, the reference
    elsewhere.
``CELLFOUNDRY_KERNELS=triton`` or ``=torch`` forces one (Triton on CPU tensors then needs
``TRITON_INTERPRET=1``).

Triton twins today: ``value_embedding`` and ``pool_cells`` (forward; backward recomputes with the reference)
and ``varlen_attention`` (forward and backward). The other ops, and float64, always run the reference.
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
    choice = os.environ.get(VARIABLE, "")
    if choice not in ("", "triton", "torch"):
        raise ValueError(f"{VARIABLE} is {choice!r}: set it to triton or torch, or unset it.")
    if choice == "torch" or tensor.dtype not in TRITON_DTYPES:
        return False
    installed = find_spec("triton") is not None
    if choice == "":
        return installed and tensor.is_cuda
    if not installed:
        raise ValueError(f"{VARIABLE} is 'triton', but triton is not installed: install it, or unset it.")
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"{VARIABLE} is 'triton', but a tensor is on {tensor.device}: move it to a CUDA device, set "
            "TRITON_INTERPRET=1 (slow, for tests), or unset the variable."
        )
    return True
