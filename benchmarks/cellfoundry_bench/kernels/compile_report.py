"""What every kernel compiles to, without a GPU: registers, spills, shared memory, and how full a processor gets."""

from __future__ import annotations

from cellfoundry_bench.compiled import Resources, compiled_in_parallel
from cellfoundry_bench.results import Row
from cellfoundry_kernels.launch import Launch, all_published_launches

DEVICES = {80: "A100", 90: "H100, H200"}
WARPS_PER_SM = 64


def compile_rows() -> list[Row]:
    """One row a launch and device: registers of a thread, with spills, shared memory and occupancy beside them."""
    chosen = [
        (launch, capability) for launch in all_published_launches() for capability in launch.capabilities
    ]
    with compiled_in_parallel(chosen) as found:
        return [
            _row(launch, found[launch.name, capability].result(), capability) for launch, capability in chosen
        ]


def _row(launch: Launch, found: Resources, capability: int) -> Row:
    note = (
        f"{found.stack_bytes} bytes spilled, {found.shared_bytes / 1024:.0f} KiB shared, {found.blocks} blocks and "
        f"{found.warps} of {WARPS_PER_SM} warps a processor"
    )
    what = f"{launch.name}, sm_{capability} ({DEVICES[capability]})"
    return Row(what, found.registers, "registers a thread", note=note)
