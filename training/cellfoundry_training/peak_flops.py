"""What a device could compute at most, the denominator of MFU."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

# Dense FLOP/s of the tensor cores in bf16 and of the CUDA cores in fp32 (TF32 is off by default in torch), from
# NVIDIA's data sheets of the SXM or only form; entries that are more specific come first.
DATASHEET: tuple[tuple[str, float, float], ...] = (
    ("H100 PCIe", 756e12, 51e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100", 989e12, 67e12),
    ("H200 NVL", 835e12, 60e12),
    ("H200", 989e12, 67e12),
    ("GH200", 989e12, 67e12),
    ("B200", 2250e12, 75e12),
    ("A100", 312e12, 19.5e12),
    ("A30", 165e12, 10.3e12),
    ("A10", 125e12, 31.2e12),
    ("L40S", 362e12, 91.6e12),
    ("L4", 121e12, 30.3e12),
)
MEASURED_SIZE = 1024


@dataclass(frozen=True)
class PeakFlops:
    """Most floating point operations a second, and where the figure is from."""

    per_s: float
    source: Literal["data sheet", "measured matrix product"]


def peak_flops(device: torch.device, precision: Literal["fp32", "bf16"]) -> PeakFlops:
    """Of one rank's device; a GPU without a known data sheet, or a CPU, is measured (about 0.1 s)."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, bf16, fp32 in DATASHEET:
            if all(word in name.replace("-", " ").split() for word in part.split()):
                return PeakFlops(bf16 if precision == "bf16" else fp32, "data sheet")
    return PeakFlops(_measured(device, precision), "measured matrix product")


def _measured(device: torch.device, precision: str) -> float:
    """The fastest of five products of two (size, size) matrices."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size = MEASURED_SIZE if device.type == "cpu" else 8 * MEASURED_SIZE
    a = torch.ones(size, size, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        (a @ a)[0, 0].item()
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * size**3 / fastest
