"""What training the decoder on a sample of the zeros saves, and what it costs in held-out error, over sampling rates.

Work is counted and a step is timed in the published shape; errors are those of a small model that a CPU can train well
past the genes' means: for each seed one run with the full decoder and one a rate, on the same cells and masks from the
same weights, all evaluated by the full decoder. Runs of one seed that differ in the sample alone end up to 0.6 % apart,
hence several seeds. Cells come from the store that the environment names, else from the bundled donor.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
import torch

from cellfoundry_bench.context.training import Learnt, train
from cellfoundry_bench.errors import BenchError
from cellfoundry_bench.measure import cpu_clock, wall_clock
from cellfoundry_bench.results import Curve, Row, SuiteResult
from cellfoundry_bench.training.plain_engine import PlainEngine
from cellfoundry_data.store import Store, open_store
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.flops import training_flops
from cellfoundry_training.batches import CellTensors
from cellfoundry_training.config import PretrainConfig, load_config
from cellfoundry_training.gene_means import gene_sums
from cellfoundry_training.objective import Masking
from cellfoundry_training.splits import first_cells, mean_cells, train_cells
from cellfoundry_training.step import GlobalStep
from cellfoundry_training.step_clock import StepClock

STORE_VARIABLE = "CELLFOUNDRY_BENCH_STORE"
RATES = (0.02, 0.05, 0.1, 0.25)
SHAPE = "100m"
# The bar, which one rate has to meet in both: at least so many times the cells a second, at most so much of the error.
BAR_RATES, SPEED, ERROR = (0.05, 0.1), 3.0, 1.01
FLOPS_CELLS = 256
# The published shape on one rank, a step of one micro-batch.
ALONE = ("batch_tokens=null", "workers=1", "gradient_accumulation=1")
# One decoder layer: with the full decoder a core trains 8.1 cells a second through two layers, 2.0 through six. So the
# errors do not go on through layers, as they do in the published shape.
LEARNER = (
    *("model.encoder_heads=1", "model.decoder_width=32", "model.decoder_heads=2"),
    *("batch_cells=4", "learning_rate=5.0e-3", "warmup_steps=100", "max_seconds=null", "max_steps=1000"),
    *("validation_share=0.05", "eval_cells=400"),
)
SEEDS = (0, 1, 2)

Runs = dict[float | None, list[Learnt]]


def run() -> SuiteResult:
    """Count, time and train, on the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with chosen_store() as store:
        work = work_by_rate(store)
        learnt = learn(store, load_config("tiny", LEARNER), device)
        # A step takes a minute on one core of a CPU, next to which warming up is nothing.
        cells, rounds = (32, 8) if device.type == "cuda" else (1, 2)
        times = times_by_rate(store, device, cells, rounds)
    return SuiteResult([*_speed_rows(work, times, device), *_error_rows(learnt)], [_trade_off(work, learnt)])


def sampled(config: PretrainConfig, rate: float | None) -> PretrainConfig:
    """``config`` with a decoder that sees this share of the zeros; all for None."""
    if rate is None:
        return config.model_copy(update={"decoder_context": "full"})
    return config.model_copy(update={"decoder_context": "sampled", "context_rate": rate})


def work_by_rate(store: Store) -> dict[float | None, float]:
    """Useful FLOPs of a training step of the published shape, of an average cell of the store; None for full."""
    config = load_config(SHAPE, [*ALONE, "batch_cells=16"])
    n_genes = len(store.vocabulary.genes)
    batches = [
        CellTensors.of(batch, torch.device("cpu"))
        for batch in first_cells(train_cells(store, config), FLOPS_CELLS)
    ]
    work = {}
    for rate in (None, *RATES):
        masking, flops = Masking.of(sampled(config, rate), n_genes), 0
        for cells in batches:
            masked = masking.mask(cells, 1)
            flops += training_flops(
                config.architecture(n_genes), masked, masking.sample(masked, cells.cell_ids, 1)
            )
        work[rate] = flops / sum(map(len, batches))
    return work


def times_by_rate(
    store: Store, device: torch.device, cells: int, rounds: int
) -> dict[float | None, list[float]]:
    """Seconds of training steps of the published shape by rate, in turn: mask, sample, forward, backward, update.

    Of cells as long as the average of FLOPS_CELLS, not thinned: on a CPU a step is one cell, whose length decides the
    ratio. CPU-seconds on a CPU, so that its neighbours do not count.
    """
    config = load_config(SHAPE, [*ALONE, f"batch_cells={FLOPS_CELLS}", "read_depth_aware=false"])
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    n_genes = len(store.vocabulary.genes)
    torch.manual_seed(0)
    model = CellModel(config.architecture(n_genes)).to(device)
    engine, step_clock = PlainEngine(model, dtype), StepClock(device)
    pool = next(iter(train_cells(store, config)))
    lengths = np.diff(pool.indptr)
    usual = np.abs(lengths - lengths.mean()).argsort(kind="stable")[: cells * rounds]
    batches = [CellTensors.of(pool.select(own), device) for own in np.array_split(usual, rounds)]
    clock = wall_clock if device.type == "cuda" else cpu_clock
    times: dict[float | None, list[float]] = {rate: [] for rate in (None, *RATES)}
    for number, batch in enumerate(batches, start=1):
        for rate, spent in times.items():
            step = GlobalStep(engine, model.config, Masking.of(sampled(config, rate), n_genes), step_clock)
            started = clock()
            step_clock.start("data")
            step.run([batch], number, 1e-5)
            spent.append(clock() - started)
    return times


def learn(store: Store, config: PretrainConfig, device: torch.device) -> Runs:
    """Runs by rate, None for full, one a seed."""
    runs: Runs = {rate: [] for rate in (None, *RATES)}
    for seed in SEEDS:
        config = config.model_copy(update={"seed": seed})
        means = gene_sums(mean_cells(store, config), config, len(store.vocabulary.genes))
        for rate, same in runs.items():
            same.append(train(store, sampled(config, rate), means, device))
    return runs


def errors_over_full(runs: Runs, rate: float) -> list[float]:
    """Held-out errors at ``rate`` over those of the full decoder of the same seed."""
    return [ours.heldout.loss / full.heldout.loss for ours, full in zip(runs[rate], runs[None], strict=True)]


def _speed_rows(
    work: dict[float | None, float], times: dict[float | None, list[float]], device: torch.device
) -> list[Row]:
    what = (
        "on a GPU, bf16"
        if device.type == "cuda"
        else f"CPU-seconds, {torch.get_num_threads()} threads, float32"
    )
    rows = [
        Row(
            f"{SHAPE}, useful FLOPs of a cell's training step, rate {rate:g}",
            work[rate] / 1e9,
            "GFLOP",
            "full decoder",
            work[None] / 1e9,
            work[None] / work[rate],
            note=f"mean of {FLOPS_CELLS} training cells",
        )
        for rate in RATES
    ]
    for rate in RATES:
        ratios = [full / ours for full, ours in zip(times[None], times[rate], strict=True)]
        rows.append(
            Row(
                f"{SHAPE}, a training step, rate {rate:g}",
                median(times[rate]),
                "s",
                "full decoder",
                median(times[None]),
                median(times[None]) / median(times[rate]),
                (min(ratios), max(ratios)),
                bar=SPEED if rate in BAR_RATES else None,
                note=f"{what}, median of {len(ratios)} batches of cells of average length, not thinned",
            )
        )
    return rows


def _error_rows(runs: Runs) -> list[Row]:
    full = runs[None]
    losses = ", ".join(f"{one.heldout.loss:.4f}" for one in full)
    means = ", ".join(f"{one.heldout.gene_mean_loss:.4f}" for one in full)
    note = (
        f"tiny with one encoder head and one decoder layer of width 32, seeds {losses} (gene means {means}); "
        f"{full[0].cells:,} cells of training each, evaluated by the full decoder on {full[0].heldout.cells:,} cells"
    )
    rows = [
        Row("held-out masked MSE, full decoder", mean(one.heldout.loss for one in full), "MSE", note=note)
    ]
    for rate in RATES:
        over_full = errors_over_full(runs, rate)
        seeds = ", ".join(f"{one:.4f}" for one in over_full)
        error = stdev(over_full) / len(over_full) ** 0.5 if len(over_full) > 1 else 0.0
        rows.append(
            Row(
                f"held-out masked MSE trained at rate {rate:g}, over that of full",
                mean(over_full),
                "of full",
                bar=ERROR if rate in BAR_RATES else None,
                bar_is="at most",
                note=f"mean of seeds {seeds}; standard error {error:.4f}",
            )
        )
    return rows


def _trade_off(work: dict[float | None, float], runs: Runs) -> Curve:
    return Curve(
        "Error and work against the share of zeros that is decoded",
        "sampling rate",
        "over the full decoder's",
        {
            "held-out masked MSE": [(rate, mean(errors_over_full(runs, rate))) for rate in RATES],
            f"FLOPs of {SHAPE}": [(rate, work[rate] / work[None]) for rate in RATES],
        },
        {"full decoder": 1.0},
    )


@contextmanager
def chosen_store() -> Iterator[Store]:
    """The store that the environment names, or one of the bundled donor."""
    named = os.environ.get(STORE_VARIABLE)
    if named is not None:
        if not Path(named).is_dir():
            raise BenchError(f"{STORE_VARIABLE} is {named!r}; set it to the folder of a store, or unset it")
        yield open_store(named)
        return
    from cellfoundry_data.bundled import baron_h5ad
    from cellfoundry_data.ingest import ingest

    with tempfile.TemporaryDirectory() as folder:
        donor = baron_h5ad(Path(folder) / "donor.h5ad")
        ingest([str(donor)], f"{folder}/store")
        yield open_store(f"{folder}/store")
