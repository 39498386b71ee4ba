"""Runs a run's ranks under Ray Train V2: places them, starts them again after losses, stops them on signals."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from cellfoundry_data.errors import DataError
from cellfoundry_model.errors import ModelError
from cellfoundry_training.config import PretrainConfig
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.files import RunFiles

COLLECTIVE_MARGIN_S = 60
# On a busy machine ranks need more than Ray's 60 s to import torch, and Ray would start them over and over. An elastic
# run waits for as long before it goes on without a node that is gone.
START_TIMEOUT_S, ELASTIC_START_TIMEOUT_S = 600, 120
OURS = (TrainingError, DataError, ModelError)
# A process or node that is gone, a collective without its peer, a device or disk that failed: another start may do.
MAY_PASS = (ray.exceptions.RayError, RuntimeError, OSError)


def run_ranks(config: PretrainConfig, device: str, store: Path, files: RunFiles) -> bool:
    """Run the ranks to the end of the budget; False where SIGTERM ended the run before, which is then saved.

    Raises:
        TrainingError: what a rank raised, or that ranks were lost too often.
        KeyboardInterrupt: Ctrl-C; the ranks are stopped.
    """
    from cellfoundry_training.worker import train_rank

    elastic = config.min_workers is not None and config.min_workers < config.workers
    timeout_s = ELASTIC_START_TIMEOUT_S if elastic else START_TIMEOUT_S
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(timeout_s))
    gpu = device == "cuda"
    run_config = ray.train.RunConfig(  # type: ignore[call-arg]  # typed as Ray Train V1's, is V2's
        name=files.ray.name,
        storage_path=str(files.folder),
        failure_config=ray.train.FailureConfig(max_failures=config.max_restarts),
        callbacks=[_Losses(files)],  # type: ignore[list-item]  # V2's, too
        # DeepSpeed must not pick a GPU for a run on CPU.
        worker_runtime_env={"env_vars": {} if gpu else {"DS_ACCELERATOR": "cpu"}},
    )
    trainer = TorchTrainer(
        train_rank,  # type: ignore[arg-type]  # V2 takes what it returns
        train_loop_config={"config": config.model_dump(), "store": str(store), "run": str(files.folder)},
        torch_config=TorchConfig(
            backend="nccl" if gpu else "gloo",
            # The ranks' own watch, which names the rank that hangs, comes first.
            timeout_s=round(config.collective_timeout_s) + COLLECTIVE_MARGIN_S,
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(config.min_workers, config.workers) if elastic else config.workers,  # type: ignore[arg-type]
            use_gpu=gpu,
        ),
        run_config=run_config,
    )
    try:
        with _signals(files):
            return bool(trainer.fit().return_value)  # type: ignore[attr-defined]  # V2's
    except SystemExit:
        # What Ray Train's handler makes of Ctrl-C after it stopped the ranks.
        raise KeyboardInterrupt from None
    except ray.train.TrainingFailedError as error:
        raise as_sentence(error, files) from error


class _Losses(ray.train.UserCallback):
    """Notes every loss of ranks in the run's folder, and ends the run on errors that would only come again."""

    def __init__(self, files: RunFiles) -> None:
        self._files = files
        self._before: list[str] = []

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray's controller, which does not restart after an error from here.

        What is neither ours nor may pass is a defect, unless a peer's death brought it about: it has a second chance.
        """
        errors = [_bare(worker_exceptions[rank]) for rank in sorted(worker_exceptions)]
        for error in errors:
            if isinstance(error, OURS):
                raise error
        with contextlib.suppress(OSError), self._files.failure.open("a") as file:
            for rank, failure in sorted(worker_exceptions.items()):
                file.write(f"rank {rank}: {failure}\n")
        defects = [error for error in errors if not isinstance(error, MAY_PASS)]
        if defects and [repr(error) for error in defects] == self._before:
            raise defects[0]
        self._before = [repr(error) for error in defects]


def _bare(error: Exception) -> Exception:
    """What a rank raised, without Ray's wrapping."""
    bare: Exception = getattr(error, "_base_exc", error)
    return bare


def as_sentence(error: Exception, files: RunFiles) -> Exception:
    """The rank's own sentence if it raised one of ours, else one that names the file with the tracebacks."""
    failures = getattr(error, "worker_failures", {})
    raised = [getattr(error, "controller_failure", error), *(failures[rank] for rank in sorted(failures))]
    for each in map(_bare, raised):
        if isinstance(each, OURS):
            return each
    if files.hang.is_file():
        return TrainingError(files.hang.read_text())
    with files.failure.open("a") as file:
        file.write(f"{error}\n")
    return TrainingError(
        f"pretraining stopped by an unexpected error: see {files.failure}; --resume continues the run"
    )


@contextmanager
def _signals(files: RunFiles) -> Iterator[None]:
    """SIGTERM asks the ranks to save and end, a second one stops them as Ctrl-C does; former handlers come back.

    Ray Train replaces the process's SIGINT handler and leaves it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        if files.stop.exists():
            signal.raise_signal(signal.SIGINT)
        files.stop.touch()

    signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
