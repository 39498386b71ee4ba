"""What every rank runs inside Ray Train: steps, evaluations, checkpoints, and the model directory on rank 0."""

from __future__ import annotations

import itertools
import os
import time
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
from cellfoundry_training import stalls
from cellfoundry_training.batches import CellTensors, PrefetchedBatches
from cellfoundry_training.config import PretrainConfig
from cellfoundry_training.engine import full_weights, prepare_model, start_engine, time_collectives
from cellfoundry_training.evaluation import Heldout, evaluate, sum_over_ranks, turns
from cellfoundry_training.files import RunFiles
from cellfoundry_training.gene_means import gene_sums
from cellfoundry_training.hang_watch import HangWatch
from cellfoundry_training.logs import RunLog
from cellfoundry_training.objective import EVALUATION_STEP, Masking, mask_batch
from cellfoundry_training.peak_flops import peak_flops
from cellfoundry_training.probe import Probe, labelled_cells, linear_probe
from cellfoundry_training.schedule import budget_share, learning_rate
from cellfoundry_training.skipped_steps import check_in_a_row, skipped_record
from cellfoundry_training.splits import heldout_batches, heldout_cells, mean_cells, train_cells
from cellfoundry_training.state import RunState, restore_checkpoint, save_checkpoint
from cellfoundry_training.step import GlobalStep, StepOutcome
from cellfoundry_training.step_clock import StepClock


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
        self.heldout_cells = heldout_cells(store, config)
        torch.manual_seed(config.seed)
        architecture = config.architecture(len(self.genes))
        model = prepare_model(CellModel(architecture), config, self.device)
        self.engine = start_engine(model, config, self.device)
        self.clock = StepClock(self.device)
        time_collectives(self.clock)
        masking = Masking.of(config, len(self.genes))
        self.step = GlobalStep(self.engine, architecture, masking, self.clock, self.ranks)
        self.watch = HangWatch(files, self.rank, self.ranks, config.collective_timeout_s, self.clock)
        self.peak = peak_flops(self.device, config.precision)
        self.stalls = stalls.DataStalls()
        self.state = restore_checkpoint(self.engine) or RunState()
        self.log = RunLog(files.metrics, config, self.state.step) if self.rank == 0 else None
        if self.state.loader:
            self.train_cells.load_state_dict(self.state.loader)
        own_sums = gene_sums(mean_cells(store, config, self.rank, self.ranks), config, len(self.genes))
        self.gene_sums = sum_over_ranks(own_sums, self.device)

    def run(self) -> None:
        """Train until the budget is used; then evaluate, checkpoint and leave the model directory."""
        config, state = self.config, self.state
        # A resumed run stands right after a checkpoint, and an evaluation that fell on the same step.
        saved = state.step
        with (
            self.watch,
            PrefetchedBatches(self.train_cells, self.device, ahead=config.gradient_accumulation) as batches,
        ):
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

    def _step(self, batches: PrefetchedBatches) -> bool:
        """One optimizer step on the global batch; False, and nothing done, if the budget is used up."""
        config, state = self.config, self.state
        share = self._agreed(budget_share(config, state.step, state.seconds))
        if share >= 1.0:
            return False
        started, waited = time.perf_counter(), batches.waited_s
        self.clock.start("data")
        micro = list(itertools.islice(batches, config.gradient_accumulation))
        rate = learning_rate(config, state.step + 1, share)
        outcome = self.step.run(micro, state.step + 1, rate)

        seconds = time.perf_counter() - started
        state.step, state.seconds = state.step + 1, state.seconds + seconds
        state.cells, state.tokens = state.cells + outcome.cells, state.tokens + outcome.tokens
        state.loader = batches.position
        self.watch.step = state.step
        if outcome.applied:
            state.skipped_in_a_row = 0
            self._log(**self._step_record(outcome, seconds, rate))
        else:
            self._skip(outcome, micro)
        self._warn_of_stall(self.stalls.share(batches.waited_s - waited, seconds))
        return True

    def _warn_of_stall(self, share: float | None) -> None:
        """Log one line a window in which the slowest rank waited for data for long."""
        if share is None:
            return
        worst = torch.tensor(share, device=self.device)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        sentence = stalls.warning(worst.item())
        if sentence is not None:
            self._log(step=self.state.step, warning=sentence)

    def _step_record(self, outcome: StepOutcome, seconds: float, rate: float) -> dict[str, Any]:
        """What metrics.jsonl says of a step: sums over ranks, but for the phases, which are this rank's."""
        state, phases = self.state, self.clock.seconds()
        return {
            "step": state.step,
            "loss": outcome.loss,
            "gradient_norm": outcome.gradient_norm,
            "lr": rate,
            "cells": state.cells,
            "tokens": state.tokens,
            "seconds": state.seconds,
            "cells_per_s": outcome.cells / seconds,
            "tokens_per_s": outcome.tokens / seconds,
            "mfu": outcome.flops / (seconds * self.ranks * self.peak.per_s),
            "data_wait_s": phases.pop("data"),
            **{f"{phase}_s": spent for phase, spent in phases.items()},
        }

    def _skip(self, outcome: StepOutcome, micro: list[CellTensors]) -> None:
        """Count and log a step that was not applied; TrainingError on every rank after too many in a row."""
        state = self.state
        state.skipped, state.skipped_in_a_row = state.skipped + 1, state.skipped_in_a_row + 1
        record = skipped_record(outcome, micro, state.step)
        self._log(**record, skipped_in_a_row=state.skipped_in_a_row)
        check_in_a_row(state.skipped_in_a_row, self.config, record)

    def _evaluate(self) -> None:
        """Held-out loss and probe; the model directory keeps the weights with the lowest loss so far."""
        config, state = self.config, self.state
        self.clock.enter("evaluation")
        self.engine.eval()
        heldout = evaluate(
            self.engine,
            turns(heldout_batches(self.heldout_cells, config), self.rank, self.ranks),
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
        self.clock.enter("checkpoint")
        save_checkpoint(self.engine, self.state)

    def _log(self, **record: Any) -> None:
        if self.log is not None:
            self.log.write(record)

    def _mask(self, batch: CellBatch, step: int) -> MaskedCells:
        return mask_batch(batch, self.config, n_genes=len(self.genes), step=step, device=self.device)

    def _agreed(self, share: float) -> float:
        """Rank 0's word: clocks differ, and all ranks must stop at the same step."""
        self.clock.enter("between steps")
        word = torch.tensor([share], dtype=torch.float64, device=self.device)
        with self.clock.communicating():
            dist.broadcast(word, src=0)
        return float(word)
