"""What every kernel compiles to, without a GPU: registers, spills, shared memory, and how full a processor gets."""

from __future__ import annotations

import importlib
import pkgutil

import cellfoundry_kernels
from cellfoundry_bench.compiled import Resources, compile_launch
from cellfoundry_bench.results import Row
from cellfoundry_kernels.launch import Launch

CAPABILITIES = {80: "A100", 90: "H100, H200"}
WARPS_PER_SM = 64


def published_launches() -> list[Launch]:
    """The launches of all ops at the published model's sizes."""
    launches: list[Launch] = []
    for module in pkgutil.iter_modules(cellfoundry_kernels.__path__):
        if module.ispkg:
            try:
                kernel = importlib.import_module(f"cellfoundry_kernels.{module.name}.kernel")
            except ModuleNotFoundError:  # an op without a Triton twin, or no triton here
                continue
            launches += kernel.published_launches()
    return launches


def compile_rows(capability: int) -> list[Row]:
    """One row a launch: registers of a thread, with spills, shared memory and occupancy beside them."""
    return [_row(launch, compile_launch(launch, capability), capability) for launch in published_launches()]


def _row(launch: Launch, found: Resources, capability: int) -> Row:
    note = (
        f"{found.stack_bytes} bytes spilled, {found.shared_bytes / 1024:.0f} KiB shared, {found.blocks} blocks and "
        f"{found.warps} of {WARPS_PER_SM} warps a processor"
    )
    what = f"sm_{capability} ({CAPABILITIES[capability]}): {launch.name}"
    return Row(what, found.registers, "registers a thread", note=note)
