"""The training step: on one process without Ray and DeepSpeed, beside a padded twin, as a run, and beside plain DDP.

A machine with only torch, triton, numpy and safetensors measures the first two (100m in bf16 on a GPU, tiny on a CPU);
the others need the project's dependencies and say so where one is missing.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from cellfoundry_bench.results import Row, SuiteResult
from cellfoundry_bench.training.one_process import padded_row, step_rows, work_for

NEEDS = ("ray", "deepspeed", "pydantic", "zarr", "anndata")


def run() -> SuiteResult:
    """Measure on the GPU where there is one, else on the CPU."""
    if torch.cuda.is_available():
        # 100m keeps about 2.4 GB a cell for backward; its padded twin keeps the feature maps besides.
        large = work_for("100m", cells=32, device=torch.device("cuda"), precision="bf16")
        small = work_for("100m", cells=4, device=torch.device("cuda"), precision="bf16")
        return SuiteResult([*step_rows(large, steps=10), padded_row(small, rounds=7), *platform_rows("cuda")])
    work = work_for("tiny", cells=8, device=torch.device("cpu"), precision="fp32")
    return SuiteResult([*step_rows(work, steps=15), padded_row(work, rounds=9), *platform_rows("cpu")])


def platform_rows(device: str) -> list[Row]:
    """What needs Ray and DeepSpeed, or one row that says what is missing."""
    missing = [package for package in NEEDS if find_spec(package) is None]
    if missing:
        note = f"needs {', '.join(missing)}"
        return [Row("pretraining run; ZeRO-2 against plain DDP", None, "cells/s", note=note)]
    from cellfoundry_bench.training.ranks import engine_row
    from cellfoundry_bench.training.whole_run import run_rows

    if device == "cuda":
        run = run_rows(
            "100m", workers=1, steps=20, overrides=["gradient_accumulation=1", "batch_tokens=400000"]
        )
    else:
        run = run_rows("tiny", workers=2, steps=40, overrides=["batch_cells=4"])
    return [*run, *(engine_row(preset, cells=4, steps=10, rounds=5) for preset in ("tiny", "3m"))]
