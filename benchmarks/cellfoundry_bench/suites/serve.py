"""The live endpoint on loopback, loaded by a process of its own.

What the endpoint itself costs is seen with an engine that computes nothing, beside Ray Serve alone; then real models at
saturation. Requests are Open Inference Protocol V2 with binary tensors over kept-alive connections.
"""

from __future__ import annotations

from cellfoundry_bench.real_cells import real_cells
from cellfoundry_bench.results import SuiteResult
from cellfoundry_bench.serving.protocol import (
    capacity_of,
    grpc_row,
    offered_curve,
    overhead_rows,
    ray_serve_row,
)
from cellfoundry_bench.serving.saturation import saturation_row


def run() -> SuiteResult:
    """Overhead and offered load with an engine that computes nothing, Ray Serve, then models on real cells."""
    rows, clients = overhead_rows(requests=4000)
    offered = offered_curve(capacity_of(rows), seconds=5.0)
    rows.append(grpc_row(calls=2000))
    rows.append(ray_serve_row(requests=2000, rounds=5))
    rows += [
        saturation_row("tiny", real_cells(256), rounds=5),
        saturation_row("10m", real_cells(64), rounds=2),
    ]
    return SuiteResult(rows, [clients, offered])
