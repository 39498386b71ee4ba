"""Start, watch and finish a pretraining run: Ray Train V2 places the ranks, `worker.py` is what they do.

An interruption (Ctrl-C, kill, power) leaves a run that ``resume=True`` continues from its last checkpoint, so it
costs at most the time between two checkpoints; after SIGTERM it costs nothing.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from cellfoundry_data.ray_cluster import ray_cluster
from cellfoundry_data.store import Store, open_store
from cellfoundry_model.checkpoint import load_model
from cellfoundry_training import checkpoint_files, history
from cellfoundry_training.config import PretrainConfig, load_config
from cellfoundry_training.errors import RunStopped, TrainingError
from cellfoundry_training.files import RunFiles, held
from cellfoundry_training.following import Progress, Watch, following
from cellfoundry_training.logs import check_installed
from cellfoundry_training.splits import heldout_cells, train_cells

# What a resumed run may change: how long it goes on, what it keeps, and where and how steps are computed; not what
# they compute, but for rounding, nor the cells by which the best model is chosen. Ranks and accumulation may change
# as long as the global batch stays.
FREE_ON_RESUME = {
    "workers",
    "gradient_accumulation",
    "zero_stage",
    "deepspeed",
    "activation_checkpointing",
    "compile",
    "max_steps",
    "max_seconds",
    "device",
    "eval_every_steps",
    "probe_column",
    "probe_cells",
    "loggers",
    "log_cells",
    "checkpoint_every_steps",
    "checkpoint_every_minutes",
    "keep_checkpoints",
    "keep_best_checkpoint",
    "min_workers",
    "max_restarts",
    "max_skipped_steps",
    "collective_timeout_s",
}


@dataclass(frozen=True)
class PretrainResult:
    """What a run came to. Losses are masked mean squared errors on held-out cells, all on the same positions.

    Attributes:
        steps: optimizer steps.
        cells_seen: cells of all steps, repeats counted.
        seconds: wall time of the steps.
        heldout_loss: the lowest of the run, which is that of the weights in ``model_dir``.
        final_heldout_loss: after the last step.
        gene_mean_loss: predicting each gene's mean under the masking distribution, the best constant there is.
        plain_gene_mean_loss: predicting each gene's mean over all training cells, an easier opponent.
        pearson_median: over genes, of prediction and target on held-out cells; None where genes are seen too rarely.
        probe_accuracy: of the linear probe on the embeddings; None without labels.
        probe_macro_f1: of the same.
        parameters: of the model.
        model_dir: model directory.
        history: metrics.jsonl, one line a step and an evaluation.
    """

    steps: int
    cells_seen: int
    seconds: float
    heldout_loss: float
    final_heldout_loss: float
    gene_mean_loss: float
    plain_gene_mean_loss: float
    pearson_median: float | None
    probe_accuracy: float | None
    probe_macro_f1: float | None
    parameters: int
    model_dir: Path
    history: Path


def pretrain(
    config: PretrainConfig,
    store: str | Path,
    run_dir: str | Path,
    resume: bool = False,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> PretrainResult:
    """Pretrain on a shard store; blocks until the budget of ``config`` is used.

    ``run_dir`` gets config.yaml (every value), metrics.jsonl, checkpoints/ and model/; all ranks must see it and the
    store. ``watch`` is shown the newest line of a step and each evaluation's, about twice a second. Uses the Ray
    cluster this process is connected to, or starts one on this machine and stops it again.

    Raises:
        TrainingError: a run that exists (or, with ``resume``, does not), that another process is training, other
            values on resume, a cluster too small for the workers, a loss that is no longer finite; and any unforeseen
            failure of a rank, with the file that has its traceback.
        RunStopped: SIGTERM came, and the run is saved; a SystemExit with code 143.
        DataError: an unreadable or damaged store, or one with too few cells.
    """
    store_path, files = Path(store).resolve(), RunFiles(Path(run_dir).resolve())
    check_installed(config.loggers)
    _check_store(open_store(store_path), config)
    _check_run(config, files, resume)
    with ray_cluster():
        device = _choose_device(config)
        files.folder.mkdir(parents=True, exist_ok=True)
        with held(files.folder):
            config.write(files.config)
            for of_the_run_before in (files.hang, files.stop, files.failure):
                of_the_run_before.unlink(missing_ok=True)
            shutil.rmtree(files.heartbeats, ignore_errors=True)
            from cellfoundry_training.launch import run_ranks

            with following(files, config, device, progress, watch):
                finished = run_ranks(config, device, store_path, files)
            files.stop.unlink(missing_ok=True)
    if not finished:
        raise RunStopped(_stopped(files))
    return _result(files)


def _check_store(store: Store, config: PretrainConfig) -> None:
    """Raise here, before anything starts, what every rank would raise."""
    if store.values != "counts":
        raise TrainingError(
            f"{store.path} holds {store.values} values, and pretraining needs raw counts: ingest the raw counts "
            "(--values counts)."
        )
    config.architecture(len(store.vocabulary.genes))
    train_cells(store, config, ranks=config.workers)
    heldout_cells(store, config)


def _stopped(files: RunFiles) -> str:
    saved = next(iter(checkpoint_files.listed(files.checkpoints)), None)
    if saved is None:
        return f"run {files.folder} was stopped before it took a step: --resume starts it again"
    return f"run {files.folder} was stopped, saved at step {checkpoint_files.step_of(saved)}: --resume continues it"


def _check_run(config: PretrainConfig, files: RunFiles, resume: bool) -> None:
    if not resume:
        if files.folder.exists() and (not files.folder.is_dir() or any(files.folder.iterdir())):
            raise TrainingError(f"run {files.folder} exists: continue it with --resume or give another --run")
        return
    if not files.config.is_file():
        raise TrainingError(
            f"run {files.folder} has no {files.config.name} to resume from: start it without --resume"
        )
    before = load_config(files.config)
    if is_of_older_version(files):
        raise TrainingError(
            f"run {files.folder} has checkpoints of an earlier CellFoundry, which this one cannot read: continue it "
            "with that version, or start another --run"
        )
    if before.step_batches != config.step_batches:
        raise TrainingError(
            f"run {files.folder} was started with {before.workers} workers x {before.gradient_accumulation} "
            f"accumulated batches and cannot go on with {config.workers} x {config.gradient_accumulation}: set workers "
            f"and gradient_accumulation so that their product stays {before.step_batches}"
        )
    for name in PretrainConfig.model_fields:
        if name not in FREE_ON_RESUME and getattr(before, name) != getattr(config, name):
            raise TrainingError(
                f"run {files.folder} was started with {name} {getattr(before, name)!r}, not {getattr(config, name)!r}: "
                "resume with the same value, or start another --run"
            )


def is_of_older_version(files: RunFiles) -> bool:
    """Whether the run's checkpoints were Ray Train's, as up to version 0.1."""
    return (files.checkpoints / "checkpoint_manager_snapshot.json").exists()


def _choose_device(config: PretrainConfig) -> str:
    import ray

    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    name, needed = ("workers", config.workers)
    if config.min_workers is not None:
        name, needed = ("min_workers", config.min_workers)
    if config.device == "cuda" and gpus < needed:
        raise TrainingError(
            f"device is cuda and {name} {needed}, but the cluster has {gpus} GPUs: lower {name} or choose device=cpu"
        )
    if cpus < needed:
        raise TrainingError(
            f"{name} is {needed}, but the cluster has {cpus} CPUs: set fewer, such as --set {name}={cpus}"
        )
    if config.device == "auto":
        return "cuda" if gpus >= needed else "cpu"
    return config.device


def _result(files: RunFiles) -> PretrainResult:
    records = history.read(files.metrics)
    last, best = history.steps(records)[-1], history.best_evaluation(records)
    final = history.evaluations(records)[-1]
    if best is None:
        raise TrainingError(
            f"run {files.folder} has no model: its held-out loss was never a number; lower learning_rate"
        )
    model = load_model(files.model).model
    return PretrainResult(
        steps=last["step"],
        cells_seen=last["cells"],
        seconds=last["seconds"],
        heldout_loss=best["heldout_loss"],
        final_heldout_loss=math.nan if final["heldout_loss"] is None else final["heldout_loss"],
        gene_mean_loss=best["gene_mean_loss"],
        plain_gene_mean_loss=best["plain_gene_mean_loss"],
        pearson_median=best["pearson_median"],
        probe_accuracy=best["probe_accuracy"],
        probe_macro_f1=best["probe_macro_f1"],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        model_dir=files.model,
        history=files.metrics,
    )
