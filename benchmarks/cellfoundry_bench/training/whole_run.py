"""A short pretraining run as users start it, Ray Train and DeepSpeed included: what its own log says of its steps."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from cellfoundry_bench.results import Row
from cellfoundry_training.step_clock import PHASES

WARM_STEPS = 3


def run_rows(preset: str, workers: int, steps: int, overrides: list[str]) -> list[Row]:
    """Medians over the steps of a run on a store of the bundled donor, in which every rank reads its own cells."""
    from cellfoundry_data.bundled import baron_h5ad
    from cellfoundry_data.ingest import ingest
    from cellfoundry_training import history
    from cellfoundry_training.config import load_config
    from cellfoundry_training.pretrain import pretrain

    budget = [f"max_steps={steps}", "max_seconds=null", f"eval_every_steps={steps}", "eval_cells=32"]
    config = load_config(
        preset, [*budget, f"checkpoint_every_steps={steps}", f"workers={workers}", *overrides]
    )
    with tempfile.TemporaryDirectory() as folder:
        store, run = Path(folder) / "store", Path(folder) / "run"
        ingest([str(baron_h5ad(Path(folder) / "donor.h5ad"))], store)
        records = history.steps(history.read(pretrain(config, store, run).history))[WARM_STEPS:]
    seconds = [
        record["data_wait_s"] + sum(record[f"{phase}_s"] for phase in PHASES[1:]) for record in records
    ]
    waits = [record["data_wait_s"] / spent for record, spent in zip(records, seconds, strict=True)]
    note = (
        f"{preset}, {workers} workers, ZeRO-{config.zero_stage}, {config.precision}, real cells from a store"
    )
    phases = {"data": "data_wait_s", **{phase: f"{phase}_s" for phase in PHASES[1:]}}
    return [
        Row("pretraining run, cells", median(each["cells_per_s"] for each in records), "cells/s", note=note),
        Row("pretraining run, encoder tokens", median(each["tokens_per_s"] for each in records), "tokens/s"),
        Row("pretraining run, MFU", median(each["mfu"] for each in records), "of the device's peak"),
        *(
            Row(f"run: {phase}", median(record[key] for record in records) * 1e3, "ms", note="rank 0")
            for phase, key in phases.items()
        ),
        Row("pretraining run, data wait", median(waits), "of a step", bar=0.02, bar_is="at most"),
    ]
