"""What every rank runs inside Ray Train: steps, evaluations, checkpoints, and the model directory on rank 0."""

from __future__ import annotations

import itertools
import math
import os
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from safetensors import SafetensorError

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store import Store, open_store
from cellfoundry_kernels import MaskedCells
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import LoadedModel, save_model
from cellfoundry_model.embedder import Embedder
from cellfoundry_model.errors import ModelError
from cellfoundry_training import stalls
from cellfoundry_training.batches import CellTensors, PrefetchedBatches
from cellfoundry_training.between_steps import SaveClock, Word, from_rank_0
from cellfoundry_training.checkpoint_files import Manifest
from cellfoundry_training.config import PretrainConfig
from cellfoundry_training.engine import full_weights, prepare_model, start_engine, time_collectives
from cellfoundry_training.engine_state import optimizer_step, own_part
from cellfoundry_training.evaluation import Heldout, evaluate, sum_over_ranks, turns
from cellfoundry_training.files import RunFiles
from cellfoundry_training.gene_means import gene_sums
from cellfoundry_training.gene_start import gene_components
from cellfoundry_training.hang_watch import HangWatch
from cellfoundry_training.logs import RunLog
from cellfoundry_training.objective import EVALUATION_STEP, Masking, mask_batch
from cellfoundry_training.peak_flops import peak_flops
from cellfoundry_training.probe import Probe, labelled_cells, linear_probe
from cellfoundry_training.run_start import RunStart
from cellfoundry_training.schedule import budget_share, learning_rate
from cellfoundry_training.skipped_steps import check_in_a_row, rows_of_all_ranks, skipped_record
from cellfoundry_training.splits import heldout_batches, heldout_cells, mean_cells, train_cells
from cellfoundry_training.step import GlobalStep, StepOutcome
from cellfoundry_training.step_clock import StepClock


def train_rank(arguments: dict[str, Any]) -> bool:
    """Entry point for Ray Train; ``arguments``: config (values), store and run (absolute paths).

    Returns whether the budget is used up; False after a request to stop, when the run is saved.
    """
    # Ranks share the cores of the node they are on.
    here = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))
    trainer = Trainer(
        PretrainConfig(**arguments["config"]), arguments["store"], RunFiles(Path(arguments["run"]))
    )
    finished = False
    try:
        finished = trainer.run()
    finally:
        trainer.checkpoints.close()
        if trainer.log is not None:
            trainer.log.close(finished)
    return finished


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
        # Elastic runs may have fewer ranks than the configuration names, at the same global batch.
        self.on_ranks = config.on_ranks(self.ranks)
        self.micro_batches = len(range(self.rank, config.step_batches, self.ranks))

        self.log: RunLog | None = None
        self._unlogged: list[str] = []
        self.start = RunStart(files, config, self.rank, self.ranks, self.warn)
        self.checkpoints = self.start.checkpoints
        torch.manual_seed(config.seed)
        architecture = config.architecture(len(self.genes))
        model = CellModel(architecture)
        if not self.start.fill(model) and config.gene_start == "components":
            self._start_from_components(model, store)
        self.engine = start_engine(prepare_model(model, config, self.device), self.on_ranks, self.device)
        self.state = self.start.restore(self.engine)
        self.clock = StepClock(self.device)
        time_collectives(self.clock)
        masking = Masking.of(config, len(self.genes))
        self.step = GlobalStep(self.engine, architecture, masking, self.clock, self.ranks)
        self.watch = HangWatch(files, self.rank, self.ranks, config.collective_timeout_s, self.clock)
        self.watch.step = self.state.step
        self.peak = peak_flops(self.device, config.precision)
        self.stalls = stalls.DataStalls()
        if self.rank == 0:
            self.log = RunLog(files.metrics, config, self.state.step)
            for sentence in self._unlogged:
                self.warn(sentence)
        if self.state.loader:
            self.train_cells.load_state_dict(self.state.loader)
        own_sums = gene_sums(mean_cells(store, config, self.rank, self.ranks), config, len(self.genes))
        self.gene_sums = sum_over_ranks(own_sums, self.device)

    def _start_from_components(self, model: CellModel, store: Store) -> None:
        """Give the genes their first vectors, the same on all ranks. Collective."""
        n_genes, width = len(self.genes), model.config.encoder_width
        table_GD = torch.empty(n_genes, width, device=self.device)
        if self.rank == 0:
            batches = mean_cells(store, self.config)
            start_GD = gene_components(batches, n_genes, width, seed=self.config.seed)
            table_GD.copy_(torch.from_numpy(start_GD))
        dist.broadcast(table_GD, src=0)
        with torch.no_grad():
            model.position_embedding.weight[:n_genes] = table_GD.cpu()

    def run(self) -> bool:
        """Train until the budget is used, evaluate, save and leave the model directory; or, told to stop, just save.

        Returns whether the budget is used.
        """
        config, state = self.config, self.state
        ahead = PrefetchedBatches(self.train_cells, self.device, ahead=self.micro_batches)
        # A resumed run stands right after a checkpoint, and an evaluation that fell on the same step.
        saves = SaveClock(config, state.step)
        with self.watch, ahead as batches:
            while True:
                word = self._agree(saves)
                if self.checkpoints.is_open and not word.writing:
                    self.checkpoints.finish()
                if word.stop or word.share >= 1.0:
                    break
                if word.save_due and saves.step != state.step:
                    self._checkpoint(saves)
                self._step(batches, word.share)
                best = state.step % config.eval_every_steps == 0 and self._evaluate()
                if saves.due_at(state.step) or (best and config.keep_best_checkpoint):
                    self._checkpoint(saves)
            if not word.stop and state.evaluated_step != state.step:
                self._evaluate()
            if saves.step != state.step:
                self._checkpoint(saves)
            self.clock.enter("checkpoint")
            self.checkpoints.finish()
        return not word.stop

    def _step(self, batches: PrefetchedBatches, share: float) -> None:
        """One optimizer step on the global batch, when ``share`` of the budget is used."""
        config, state = self.config, self.state
        started, waited = time.perf_counter(), batches.waited_s
        self.clock.start("data")
        micro = list(itertools.islice(batches, self.micro_batches))
        rate = learning_rate(config, state.step + 1, share)
        outcome = self.step.run(micro, state.step + 1, rate, self.on_ranks.gradient_accumulation)

        seconds = time.perf_counter() - started
        state.step, state.seconds = state.step + 1, state.seconds + seconds
        state.cells, state.tokens = state.cells + outcome.cells, state.tokens + outcome.tokens
        state.loader, state.learning_rate = batches.position, rate
        self.watch.step = state.step
        if outcome.applied:
            state.skipped_in_a_row = 0
            record = self._step_record(outcome, seconds, rate)
            if config.log_cells:
                record["cell_rows"] = rows_of_all_ranks(micro)
            self._log(**record)
        else:
            self._skip(outcome, micro)
        self._warn_of_stall(self.stalls.share(batches.waited_s - waited, seconds))

    def _warn_of_stall(self, share: float | None) -> None:
        """Log one line a window in which the slowest rank waited for data for long."""
        if share is None:
            return
        worst = torch.tensor(share, device=self.device)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        sentence = stalls.warning(worst.item())
        if sentence is not None:
            self.warn(sentence)

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

    def _evaluate(self) -> bool:
        """Held-out loss and probe; the model directory keeps the weights with the lowest loss so far.

        Returns whether this is it.
        """
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
        state.heldout_loss = heldout.loss if math.isfinite(heldout.loss) else None
        is_best = heldout.loss < (math.inf if state.best_heldout_loss is None else state.best_heldout_loss)
        model = self._whole_model() if is_best or config.probe_column else None
        if model is not None and is_best and self._write_model(model, heldout):
            state.best_heldout_loss = heldout.loss
        probe = self._probe(model) if model is not None and config.probe_column else None
        self._log(
            step=state.step,
            cells=state.cells,
            **heldout.record(),
            probe_accuracy=probe.accuracy if probe else None,
            probe_macro_f1=probe.macro_f1 if probe else None,
            probe_cells=probe.cells if probe else None,
        )
        return is_best

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

    def _write_model(self, model: CellModel, heldout: Heldout) -> bool:
        """Put ``model`` into the run's model directory; False, with a warning, where it cannot go there, so that
        the next evaluation tries again. Collective.
        """
        state = self.state
        failure: str | None = None
        if self.rank == 0:
            info = {
                "steps": state.step,
                "cells_seen": state.cells,
                "training_cells": self.train_cells.n_cells,
                "heldout_loss": heldout.loss,
                "gene_mean_loss": heldout.gene_mean_loss,
                "plain_gene_mean_loss": heldout.plain_gene_mean_loss,
                "config_hash": self.config.hash(),
                "gene_start": self.config.gene_start,
            }
            try:
                save_model(model, self.genes, self.files.model, info)
            except (OSError, SafetensorError) as error:
                failure = f"{error}; free space there"
            except ModelError as error:  # a user put files of theirs there
                failure = str(error)
        failure = from_rank_0(failure)
        if failure is not None:
            self.warn(f"model {self.files.model} could not be written: {failure}")
        return failure is None

    def _checkpoint(self, saves: SaveClock) -> None:
        """Begin to save the present state; the disk is waited for later."""
        self.clock.enter("checkpoint")
        part = own_part(self.engine, self.rank, self.ranks)
        part[f"rng/{self.rank}"] = torch.get_rng_state()
        manifest = Manifest(
            state=self.state.model_copy(),
            optimizer_step=optimizer_step(self.engine),
            ranks=self.ranks,
            zero_stage=self.config.zero_stage,
            config_hash=self.config.hash(),
            files=(),
        )
        self.checkpoints.save(part, manifest)
        saves.saved(self.state.step)

    def warn(self, sentence: str) -> None:
        """Leave a warning in metrics.jsonl, from where the driver shows it; rank 0's word counts."""
        if self.log is None:
            self._unlogged.append(sentence)
        else:
            self.log.write({"step": self.state.step, "warning": sentence})

    def _log(self, **record: Any) -> None:
        if self.log is not None:
            self.log.write(record)

    def _mask(self, batch: CellBatch, step: int) -> MaskedCells:
        return mask_batch(batch, self.config, n_genes=len(self.genes), step=step, device=self.device)

    def _agree(self, saves: SaveClock) -> Word:
        """What all ranks do next, the same on all: clocks differ, and so does when each has written its part."""
        self.clock.enter("between steps")
        own = Word(
            # Rank 0's clock counts for all.
            share=budget_share(self.config, self.state.step, self.state.seconds) if self.rank == 0 else 0.0,
            stop=self.rank == 0 and self.start.stop_requested(),
            save_due=self.rank == 0 and saves.minutes_passed(),
            writing=self.checkpoints.is_writing,
        )
        with self.clock.communicating():
            return own.agreed(self.device)
