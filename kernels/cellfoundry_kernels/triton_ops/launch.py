"""What every launch shares: how exact matrix products are, and padded tile sizes."""

from __future__ import annotations

from typing import TypedDict

import torch
import triton


class LaunchOptions(TypedDict):
    """Options of a launch that the compiler sees."""

    num_warps: int
    num_stages: int


def dot_precision(dtype: torch.dtype) -> str:
    """``input_precision`` of ``tl.dot``: float32 stays float32, no tf32; half precision ignores it."""
    return "ieee" if dtype == torch.float32 else "tf32"


def tile(size: int) -> int:
    """The power of two that holds ``size``, at least 16 (the smallest side of a tensor core product)."""
    return max(16, triton.next_power_of_2(size))
