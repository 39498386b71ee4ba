"""Peak speed and memory of the accelerators that a plan can name."""

from __future__ import annotations

from dataclasses import dataclass

from cellfoundry_training.errors import TrainingError


@dataclass(frozen=True)
class Accelerator:
    """One GPU.

    Attributes:
        name: as users write it.
        bf16_flops: dense bfloat16 tensor-core FLOP/s by the datasheet.
        fp32_flops: float32 FLOP/s without tf32, which is off in our kernels.
        memory_bytes: of the device.
    """

    name: str
    bf16_flops: float
    fp32_flops: float
    memory_bytes: float


# NVIDIA's datasheets (SXM forms; dense, so half of figures given "with sparsity"): A100 (2021), H100 (2023),
# H200 (2024), L40S (2023), B200 (2025, in HGX).
ACCELERATORS = {
    chip.name: chip
    for chip in (
        Accelerator("a100-40", 312e12, 19.5e12, 40e9),
        Accelerator("a100", 312e12, 19.5e12, 80e9),
        Accelerator("l40s", 362e12, 91.6e12, 48e9),
        Accelerator("h100", 989e12, 67e12, 80e9),
        Accelerator("h200", 989e12, 67e12, 141e9),
        Accelerator("b200", 2250e12, 75e12, 180e9),
    )
}


def accelerator(name: str) -> Accelerator:
    """The accelerator called ``name``; TrainingError lists the known ones."""
    if name not in ACCELERATORS:
        raise TrainingError(f"no GPU {name!r} is known: name one of {', '.join(ACCELERATORS)}")
    return ACCELERATORS[name]
