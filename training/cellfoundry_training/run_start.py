"""How a rank begins: from the run's newest checkpoint where there is one, told of what happened before."""

from __future__ import annotations

import shutil
from typing import Any

import torch

from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import clear_leftovers
from cellfoundry_training import history
from cellfoundry_training.checkpoint_files import Tensors
from cellfoundry_training.checkpoints import Checkpoints, Warn
from cellfoundry_training.config import PretrainConfig
from cellfoundry_training.engine_state import load_optimizer, load_weights
from cellfoundry_training.files import RunFiles
from cellfoundry_training.state import RunState


class RunStart:
    """One rank's beginning; every rank must do the same.

    Args:
        files: of the run.
        config: of the run.
        rank: this one.
        ranks: how many there are.
        warn: takes sentences on rank 0.

    Attributes:
        checkpoints: of the run.

    Raises:
        TrainingError: there are checkpoints, but none can be used.
    """

    def __init__(self, files: RunFiles, config: PretrainConfig, rank: int, ranks: int, warn: Warn) -> None:
        self._files, self._rank, self._warn = files, rank, warn
        started_before = files.heartbeats.exists()
        if rank == 0:
            clear_leftovers(files.model)
        self.checkpoints = Checkpoints(
            files.checkpoints,
            rank,
            ranks,
            keep=config.keep_checkpoints,
            keep_best=config.keep_best_checkpoint,
            warn=warn,
        )
        self._found = self.checkpoints.newest()
        if rank == 0:
            # Of ranks that are gone.
            shutil.rmtree(files.heartbeats, ignore_errors=True)
            files.heartbeats.mkdir(exist_ok=True)
            if started_before:
                self._warn_of_restart(ranks)
            elif self._found is None and history.newest(files.metrics).step is not None:
                warn(f"no checkpoint under {files.checkpoints}: the run starts again from step 0")

    def fill(self, model: CellModel) -> bool:
        """Give ``model`` the weights of the checkpoint, if there is one, before an engine is made of it."""
        if self._found is None:
            return False
        with Tensors(self._found) as tensors:
            load_weights(model, tensors.get)
        return True

    def restore(self, engine: Any) -> RunState:
        """Give the engine the optimizer's state and the process its random numbers; how far the run has come."""
        if self._found is None:
            return RunState()
        manifest = self._found.manifest
        with Tensors(self._found) as tensors:
            load_optimizer(engine, tensors.get, manifest.optimizer_step)
            # Ranks beyond those that wrote it begin with the numbers of one of these; no layer draws any.
            torch.set_rng_state(tensors.get(f"rng/{self._rank % manifest.ranks}"))
        return manifest.state.model_copy()

    def stop_requested(self) -> bool:
        """Whether the driver asks for a checkpoint and the end."""
        return self._files.stop.exists()

    def _warn_of_restart(self, ranks: int) -> None:
        step = self._found.manifest.state.step if self._found is not None else 0
        sentence = f"the run started again by itself on {ranks} ranks and goes on from step {step}"
        if self._files.hang.is_file():
            sentence += f"; before, {self._files.hang.read_text()}"
            self._files.hang.unlink()
        elif self._files.failure.is_file():
            sentence += f"; losses of ranks are in {self._files.failure}"
        self._warn(sentence)
