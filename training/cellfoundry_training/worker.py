"""What every rank runs inside Ray Train: steps, evaluations, checkpoints, and the model directory on rank 0."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store import open_store
from cellfoundry_kernels import MaskedCells
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import LoadedModel, save_model
from cellfoundry_model.embedder import Embedder
from cellfoundry_training.config import PretrainConfig
from cellfoundry_training.engine import full_weights, start_engine
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.evaluation import Heldout, evaluate, sum_over_ranks, turns
from cellfoundry_training.files import RunFiles
from cellfoundry_training.gene_means import gene_sums
from cellfoundry_training.logs import RunLog
from cellfoundry_training.objective import EVALUATION_STEP, mask_batch, share_of_global_loss
from cellfoundry_training.probe import Probe, labelled_cells, linear_probe
from cellfoundry_training.schedule import budget_share, learning_rate
from cellfoundry_training.splits import heldout_cells, mean_cells, train_cells
from cellfoundry_training.state import RunState, restore_checkpoint, save_checkpoint


def train_rank(arguments: dict[str, Any]) -> None:
    """Entry point for Ray Train; ``arguments``: config (values), store and run (absolute paths)."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    trainer = Trainer(
        PretrainConfig(**arguments["config"]), arguments["store"], RunFiles(Path(arguments["run"]))
    )
    finished = False
    try:
        trainer.run()
        finished = True
    finally:
        if trainer.log is not None:
            trainer.log.close(finished)


class Trainer:
    """One rank's side of a run."""

    def __init__(self, config: PretrainConfig, store_path: str, files: RunFiles) -> None:
        context = ray.train.get_context()
        self.config, self.files = config, files
        self.rank, self.ranks = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        store = open_store(store_path)
        self.genes = store.vocabulary.genes
        self.train_cells = train_cells(store, config, self.rank, self.ranks)
        # Every rank holds the whole list and takes every so-many-th batch of it: no held-out cell is left over.
        self.heldout_cells = heldout_cells(store, config)
        torch.manual_seed(config.seed)
        model = CellModel(config.architecture(len(self.genes)))
        self.engine = start_engine(model, config, self.device)
        self.state = restore_checkpoint(self.engine) or RunState()
        self.log = RunLog(files.metrics, config, self.state.step) if self.rank == 0 else None
        if self.state.loader:
            self.train_cells.load_state_dict(self.state.loader)
        own_sums = gene_sums(mean_cells(store, config, self.rank, self.ranks), config, len(self.genes))
        self.gene_sums = sum_over_ranks(own_sums, self.device)

    def run(self) -> None:
        """Train until the budget is used; then evaluate, checkpoint and leave the model directory."""
        config, state = self.config, self.state
        batches = self._endless_batches()
        # A resumed run stands right after a checkpoint, and an evaluation that fell on the same step.
        saved = state.step
        while self._step(batches):
            if state.step % config.eval_every_steps == 0:
                self._evaluate()
            if state.step % config.checkpoint_every_steps == 0:
                self._checkpoint()
                saved = state.step
        if state.evaluated_step != state.step:
            self._evaluate()
        if saved != state.step:
            self._checkpoint()

    def _step(self, batches: Iterator[CellBatch]) -> bool:
        """One optimizer step on the global batch; False, and nothing done, if the budget is used up."""
        config, state = self.config, self.state
        share = self._agreed(budget_share(config, state.step, state.seconds))
        if share >= 1.0:
            return False
        started = time.perf_counter()
        micro = list(itertools.islice(batches, config.gradient_accumulation))
        data_wait = time.perf_counter() - started

        step = state.step + 1
        masked = [self._mask(batch, step) for batch in micro]
        positions, cells, tokens = self._sum_over_ranks(
            sum(part.target_X.numel() for part in masked),
            sum(len(batch) for batch in micro),
            sum(part.position_N.numel() for part in masked),
        )
        rate = learning_rate(config, step, share)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        own_loss = torch.zeros((), device=self.device)
        for part in masked:
            loss = share_of_global_loss(
                self.engine(part), part.target_X, int(positions), self.ranks * len(masked)
            )
            self.engine.backward(loss)
            own_loss += loss.detach()
            if part is masked[-1]:
                # Before the weights change: a checkpoint must never hold the outcome of a broken step.
                loss_value = self._finite_loss(own_loss, step)
            self.engine.step()

        seconds = time.perf_counter() - started
        state.step, state.seconds = step, state.seconds + seconds
        state.cells, state.tokens = state.cells + int(cells), state.tokens + int(tokens)
        self._log(
            step=step,
            loss=loss_value,
            cells=state.cells,
            tokens=state.tokens,
            cells_per_s=cells / seconds,
            seconds=state.seconds,
            lr=rate,
            data_wait_s=data_wait,
        )
        return True

    def _finite_loss(self, own_loss: torch.Tensor, step: int) -> float:
        """Mean loss over ranks and micro-batches; TrainingError on every rank if it is not a number."""
        (total,) = self._sum_over_ranks(own_loss.item())
        loss = total / (self.ranks * self.config.gradient_accumulation)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} at step {step}: lower learning_rate (now {self.config.learning_rate:g}) or "
                "raise warmup_steps; the last checkpoint is from before"
            )
        return loss

    def _evaluate(self) -> None:
        """Held-out loss and probe; the model directory keeps the weights with the lowest loss so far."""
        config, state = self.config, self.state
        self.engine.eval()
        self.heldout_cells.set_epoch(0)
        heldout = evaluate(
            self.engine,
            turns(self.heldout_cells, self.rank, self.ranks, config.eval_cells),
            lambda batch: self._mask(batch, EVALUATION_STEP),
            self.gene_sums,
            self.device,
        )
        self.engine.train()
        state.evaluated_step = state.step
        is_best = heldout.loss < state.best_heldout_loss
        model = self._whole_model() if is_best or config.probe_column else None
        if model is not None and is_best:
            state.best_heldout_loss = heldout.loss
            self._write_model(model, heldout)
        probe = self._probe(model) if model is not None and config.probe_column else None
        self._log(
            step=state.step,
            cells=state.cells,
            **heldout.record(),
            probe_accuracy=probe.accuracy if probe else None,
            probe_macro_f1=probe.macro_f1 if probe else None,
            probe_cells=probe.cells if probe else None,
        )

    def _probe(self, model: CellModel) -> Probe | None:
        """Linear probe on the embeddings of labelled held-out cells; every rank embeds its part, rank 0 fits."""
        config = self.config
        self.heldout_cells.set_epoch(0)
        embedder = Embedder(
            LoadedModel(model, model.config, self.genes, {}),
            device=str(self.device),
            precision=config.precision,
        )
        cells = labelled_cells(
            embedder.encode,
            self.heldout_cells,
            str(config.probe_column),
            config.probe_cells,
            rank=self.rank,
            ranks=self.ranks,
            device=self.device,
        )
        return linear_probe(cells) if self.rank == 0 else None

    def _whole_model(self) -> CellModel:
        """The model with all its weights, in float32, on this rank's CPU. Collective."""
        weights = full_weights(self.engine)
        with torch.device("meta"):  # no memory and, for the run's sake, no random numbers
            model = CellModel(self.config.architecture(len(self.genes)))
        model.load_state_dict(weights, assign=True)
        return model

    def _write_model(self, model: CellModel, heldout: Heldout) -> None:
        state = self.state
        if self.rank == 0:
            info = {
                "steps": state.step,
                "cells_seen": state.cells,
                "heldout_loss": heldout.loss,
                "gene_mean_loss": heldout.gene_mean_loss,
                "plain_gene_mean_loss": heldout.plain_gene_mean_loss,
                "config_hash": self.config.hash(),
            }
            save_model(model, self.genes, self.files.model, info)

    def _checkpoint(self) -> None:
        self.state.loader = self.train_cells.state_dict()
        save_checkpoint(self.engine, self.state)

    def _log(self, **record: Any) -> None:
        if self.log is not None:
            self.log.write(record)

    def _mask(self, batch: CellBatch, step: int) -> MaskedCells:
        return mask_batch(batch, self.config, n_genes=len(self.genes), step=step, device=self.device)

    def _sum_over_ranks(self, *numbers: float) -> list[float]:
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def _agreed(self, share: float) -> float:
        """Rank 0's word: clocks differ, and all ranks must stop at the same step."""
        word = torch.tensor([share], dtype=torch.float64, device=self.device)
        dist.broadcast(word, src=0)
        return float(word)

    def _endless_batches(self) -> Iterator[CellBatch]:
        while True:
            yield from self.train_cells
