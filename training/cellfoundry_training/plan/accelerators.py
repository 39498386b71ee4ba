"""Peak speed and memory of the accelerators that a plan can name."""

from __future__ import annotations

from dataclasses import dataclass

from cellfoundry_training.errors import TrainingError
from cellfoundry_training.peak_flops import DATASHEET


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


SPEEDS = {name: (bf16_flops, fp32_flops) for name, bf16_flops, fp32_flops in DATASHEET}
# Memory is that of the same data sheets; B200 as in HGX.
ACCELERATORS = {
    chip.name: chip
    for chip in (
        Accelerator("a100-40", *SPEEDS["A100"], 40e9),
        Accelerator("a100", *SPEEDS["A100"], 80e9),
        Accelerator("l40s", *SPEEDS["L40S"], 48e9),
        Accelerator("h100", *SPEEDS["H100"], 80e9),
        Accelerator("h200", *SPEEDS["H200"], 141e9),
        Accelerator("b200", *SPEEDS["B200"], 180e9),
    )
}


def accelerator(name: str) -> Accelerator:
    """The accelerator called ``name``; TrainingError lists the known ones."""
    if name not in ACCELERATORS:
        raise TrainingError(f"no GPU {name!r} is known: name one of {', '.join(ACCELERATORS)}")
    return ACCELERATORS[name]
