"""``cellfoundry train plan``: what a run would take, before it starts."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from cellfoundry.cli.console import amount

if TYPE_CHECKING:
    from cellfoundry_training.plan.estimate import Plan
    from cellfoundry_training.plan.failures import Played

# Cells whose lengths stand for a store's.
LENGTHS_READ = 16_384
# Mean expressed genes of a cell and their spread where no store is given: 10x data of recent chemistry is near it.
EXPRESSED, SPREAD = 1_300.0, 0.5
ASSUMED_MFU = 0.4
# Bytes a parameter in a checkpoint: the float32 weight and Adam's two moments.
CHECKPOINT_BYTES = 12


def plan(
    config: str = typer.Option(..., help="Preset (tiny, 3m, 10m, 100m, 300m) or a YAML file."),
    cells: float = typer.Option(..., help="Cells of all steps, repeats counted, e.g. 50e6."),
    gpus: int = typer.Option(..., help="Devices."),
    gpu: str = typer.Option(..., help="a100-40, a100, l40s, h100, h200 or b200."),
    store: str | None = typer.Option(
        None, help="Store whose cells' lengths to plan with; without it 1,300 genes a cell are assumed."
    ),
    set_: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Override one value of the config."
    ),
    mfu: float | None = typer.Option(
        None, help=f"Useful FLOPs over the peak that you measured; without it {ASSUMED_MFU} is assumed."
    ),
    price: float | None = typer.Option(None, min=0, help="Of one device's hour, in your currency."),
    simulate: bool = typer.Option(
        False, "--simulate", help="Play failures and choose the checkpoint interval."
    ),
    mtbf_hours: float | None = typer.Option(
        None,
        min=0.01,
        help="Mean hours between failures of one device; by default 50,676 (Llama 3, 16,384 H100).",
    ),
    save_seconds: float | None = typer.Option(
        None,
        min=0,
        help="How long training stands still for a checkpoint; by default the time to copy its part to the host.",
    ),
    copy_rate: float = typer.Option(
        10, min=0.001, help="Assumed GB/s at which a device's memory is copied to its host's."
    ),
    write_rate: float = typer.Option(
        1, min=0.001, help="Assumed GB/s at which the storage takes a checkpoint of all ranks."
    ),
    restart_seconds: float = typer.Option(300, min=0, help="From a failure until steps run again."),
    json_: bool = typer.Option(False, "--json", help="One JSON object instead of lines."),
) -> None:
    """Memory, tokens, FLOPs, time and cost of a pretraining run, from the model's arithmetic."""
    from cellfoundry_training.config import load_config
    from cellfoundry_training.plan.accelerators import accelerator
    from cellfoundry_training.plan.estimate import plan_run

    settings, chip = load_config(config, set_), accelerator(gpu)
    expressed, n_genes, lengths = _lengths(store)
    share = ASSUMED_MFU if mfu is None else mfu
    planned = plan_run(settings, expressed, n_genes, cells=cells, gpus=gpus, chip=chip, mfu=share)
    result: dict[str, Any] = {"plan": asdict(planned), "mfu": share}
    if price is not None:
        result["cost"] = planned.gpu_hours * price
    lines = _plan_lines(planned, chip.memory_bytes, gpus, gpu)
    lines.append(
        f"assumed: {lengths}; MFU {share:.0%}{'' if mfu is not None else ' (yours: bench run train)'}; no failures"
    )
    if price is not None:
        lines.insert(-1, f"cost           {result['cost']:,.0f} at {price:g} a device-hour")
    if simulate:
        from cellfoundry_training.plan.failures import GPU_HOURS_BETWEEN_FAILURES, Faults, best_interval

        gigabytes = CHECKPOINT_BYTES * planned.parameters / 1e9
        faults = Faults(
            between=3600 * (GPU_HOURS_BETWEEN_FAILURES if mtbf_hours is None else mtbf_hours) / gpus,
            save=gigabytes / gpus / copy_rate if save_seconds is None else save_seconds,
            write=gigabytes / write_rate,
            restart=restart_seconds,
        )
        best, played = best_interval(planned.seconds, planned.step_seconds, faults)
        every = [asdict(one) for one in played]
        result["simulation"] = {"faults": asdict(faults), "best": asdict(best), "played": every}
        lines += _simulation_lines(planned, best, played, faults.between)
    typer.echo(json.dumps(result) if json_ else "\n".join(lines))


def _lengths(path: str | None) -> tuple[list[int], int, str]:
    """Expressed genes of cells, genes of the vocabulary, and where they come from in words."""
    from cellfoundry_training.plan.workload import lognormal_lengths

    if path is None:
        from cellfoundry_model.presets import PRESETS

        genes = PRESETS["100m"].n_genes
        return lognormal_lengths(EXPRESSED, SPREAD, genes), genes, f"{EXPRESSED:,.0f} genes a cell (--store)"
    import numpy as np

    from cellfoundry_data.loader.windows import row_nnz
    from cellfoundry_data.store import open_store

    store = open_store(path)
    rows = np.unique(np.linspace(0, store.n_cells - 1, LENGTHS_READ).astype(np.int64))
    expressed = row_nnz(store, rows).tolist()
    return expressed, len(store.vocabulary.genes), f"lengths of {len(rows):,} cells of {path}"


def _plan_lines(plan: Plan, capacity: float, gpus: int, gpu: str) -> list[str]:
    memory, work = plan.memory, plan.work
    room = "fits" if plan.fits else "does NOT fit"
    at_most = (
        f"at most {plan.largest_micro_batch:,} cells at once"
        if plan.largest_micro_batch
        else "not even one cell"
    )
    parts = ", ".join(f"{name} {amount('bytes', size)}" for name, size in asdict(memory).items())
    return [
        f"model          {plan.parameters / 1e6:,.1f} M parameters",
        f"a cell         {work.tokens:,.0f} encoder tokens, {work.rows:,.0f} decoder rows, "
        f"{work.flops / 1e12:.2f} TFLOPs",
        f"memory         {amount('bytes', memory.total)} of {amount('bytes', capacity)} a device, {room} ({at_most})",
        f"               {parts}",
        f"step           {plan.cells_per_step:,.0f} cells, {plan.step_seconds:.2f} s on {gpus} {gpu}",
        f"run            {plan.steps:,} steps, {plan.cells:,.0f} cells, {plan.cells * work.tokens:,.0f} tokens, "
        f"{plan.flops:.2e} FLOPs",
        f"time           {_hours(plan.seconds)}, {plan.gpu_hours:,.0f} device-hours",
    ]


def _simulation_lines(plan: Plan, best: Played, played: list[Played], between: float) -> list[str]:
    lines = [
        f"failures       one in {_hours(between)} over all devices, {best.failures:.1f} expected",
        "save every     mean time (5 to 95 % of plays)   over undisturbed",
    ]
    for one in played:
        mark = "  <- best" if one is best else ""
        steps = round(one.interval / plan.step_seconds)
        lines.append(
            f"{steps:>7,} steps  {_hours(one.mean)} ({_hours(one.low)} to {_hours(one.high)})   "
            f"{one.mean / plan.seconds:.3f}x{mark}"
        )
    lines.append(f"set            checkpoint_every_steps={round(best.interval / plan.step_seconds)}")
    return lines


def _hours(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"
