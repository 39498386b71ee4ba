"""Start, watch and finish a pretraining run: Ray Train V2 places the ranks, `worker.py` is what they do.

An interruption (Ctrl-C, kill, power) leaves a run that ``resume=True`` continues from its last checkpoint, so it
costs at most ``checkpoint_every_steps`` steps.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cellfoundry_data.errors import DataError
from cellfoundry_data.ray_cluster import ray_cluster
from cellfoundry_data.store import Store, open_store
from cellfoundry_model.checkpoint import load_model
from cellfoundry_model.errors import ModelError
from cellfoundry_training import history
from cellfoundry_training.config import PretrainConfig, load_config
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.files import RunFiles
from cellfoundry_training.history import Record
from cellfoundry_training.logs import check_installed
from cellfoundry_training.schedule import budget_share
from cellfoundry_training.splits import heldout_cells, train_cells

Progress = Callable[[str, int, int], None]
Watch = Callable[[Record], None]
PROGRESS_EVERY_S = 0.5
COLLECTIVE_MARGIN_S = 60
# What a resumed run may change: how long it goes on and what it keeps, not what the steps compute.
FREE_ON_RESUME = {
    "max_steps",
    "max_seconds",
    "device",
    "eval_every_steps",
    "eval_cells",
    "probe_column",
    "probe_cells",
    "loggers",
    "checkpoint_every_steps",
    "keep_checkpoints",
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
        TrainingError: a run that exists (or, with ``resume``, does not), other values on resume, a cluster too small
            for the workers, a loss that is no longer finite; and any unforeseen failure of a rank, with the file that
            has its traceback.
        DataError: an unreadable or damaged store, or one with too few cells.
    """
    store_path, files = Path(store).resolve(), RunFiles(Path(run_dir).resolve())
    check_installed(config.loggers)
    _check_store(open_store(store_path), config)
    _check_run(config, files, resume)
    with ray_cluster():
        device = _choose_device(config)
        files.folder.mkdir(parents=True, exist_ok=True)
        config.write(files.config)
        files.hang.unlink(missing_ok=True)
        with _following(files.metrics, config, progress, watch):
            _fit(config, device, store_path, files)
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
    if before.workers != config.workers:
        raise TrainingError(
            f"run {files.folder} was started with {before.workers} workers and cannot go on with {config.workers}: "
            f"resume with workers={before.workers}"
        )
    for name in PretrainConfig.model_fields:
        if name not in FREE_ON_RESUME and getattr(before, name) != getattr(config, name):
            raise TrainingError(
                f"run {files.folder} was started with {name} {getattr(before, name)!r}, not {getattr(config, name)!r}: "
                "resume with the same value, or start another --run"
            )


def _choose_device(config: PretrainConfig) -> str:
    import ray

    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    if config.device == "cuda" and gpus < config.workers:
        raise TrainingError(
            f"device is cuda and workers {config.workers}, but the cluster has {gpus} GPUs: lower workers or choose "
            "device=cpu"
        )
    if cpus < config.workers:
        raise TrainingError(
            f"workers is {config.workers}, but the cluster has {cpus} CPUs: set fewer, such as --set workers={cpus}"
        )
    if config.device == "auto":
        return "cuda" if gpus >= config.workers else "cpu"
    return config.device


def _fit(config: PretrainConfig, device: str, store: Path, files: RunFiles) -> None:
    """Run the ranks and turn their failure into one sentence."""
    # On a busy machine ranks need more than Ray's 60 s to import torch, and Ray would start them over and over.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from cellfoundry_training.worker import train_rank

    gpu = device == "cuda"
    run_config = ray.train.RunConfig(  # type: ignore[call-arg]  # typed as Ray Train V1's, is V2's
        name=files.checkpoints.name,
        storage_path=str(files.folder),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.keep_checkpoints),
        worker_runtime_env={"env_vars": _worker_environment(config.workers, gpu)},
    )
    trainer = TorchTrainer(
        train_rank,
        train_loop_config={"config": config.model_dump(), "store": str(store), "run": str(files.folder)},
        torch_config=TorchConfig(
            backend="nccl" if gpu else "gloo",
            # The ranks' own watch, which names the rank that hangs, comes first.
            timeout_s=round(config.collective_timeout_s) + COLLECTIVE_MARGIN_S,
        ),
        scaling_config=ray.train.ScalingConfig(num_workers=config.workers, use_gpu=gpu),
        run_config=run_config,
    )
    try:
        with _own_interrupt_handler():
            trainer.fit()
    except SystemExit:
        # What Ray Train's handler makes of Ctrl-C after it stopped the ranks.
        raise KeyboardInterrupt from None
    except ray.train.TrainingFailedError as error:
        raise as_sentence(error, files) from error


def _worker_environment(workers: int, gpu: bool) -> dict[str, str]:
    """Threads so that ranks share the machine's cores; DeepSpeed must not pick a GPU for a run on CPU."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = {"OMP_NUM_THREADS": str(threads)}
    return environment if gpu else {**environment, "DS_ACCELERATOR": "cpu"}


@contextmanager
def _own_interrupt_handler() -> Iterator[None]:
    """Ray Train replaces the process's SIGINT handler and leaves it; put the former one back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def as_sentence(error: Exception, files: RunFiles) -> Exception:
    """The rank's own sentence if it raised one of ours, else one that names the file with the tracebacks."""
    if files.hang.is_file():
        return TrainingError(files.hang.read_text())
    failures = getattr(error, "worker_failures", {})
    for rank in sorted(failures):
        if isinstance(failures[rank], (TrainingError, DataError, ModelError)):
            return failures[rank]
    files.failure.write_text(str(error))
    return TrainingError(
        f"pretraining stopped by an unexpected error: see {files.failure}; --resume continues the run"
    )


@contextmanager
def _following(
    metrics: Path, config: PretrainConfig, progress: Progress | None, watch: Watch | None
) -> Iterator[None]:
    """Report from the metrics file while the body runs."""
    finished = threading.Event()
    arguments = (metrics, config, progress or _ignore, watch or _ignore, finished)
    thread = threading.Thread(target=_follow, args=arguments, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _ignore(*_: object) -> None:
    """Nobody is looking."""


def _follow(
    metrics: Path, config: PretrainConfig, progress: Progress, watch: Watch, finished: threading.Event
) -> None:
    label = "pretrain (steps)"
    before, evaluation_before = history.newest(metrics)
    first = reported = before["step"] if before else 0
    evaluated = evaluation_before["step"] if evaluation_before else None
    while True:
        if reported == first:  # again and again while ranks start, which the rate of steps must not count
            progress(label, first, config.max_steps or 0)
        last_look = finished.wait(PROGRESS_EVERY_S)
        record, evaluation = history.newest(metrics)
        if record is not None and record["step"] != reported:
            step = reported = record["step"]
            watch(record)
            # A budget of seconds says how many steps it holds by how far the ones so far have come.
            share = budget_share(config, step, record["seconds"])
            progress(label, step, max(step, round(step / share)))
        if evaluation is not None and evaluation["step"] != evaluated:
            evaluated = evaluation["step"]
            watch(evaluation)
        if last_look:
            return


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
