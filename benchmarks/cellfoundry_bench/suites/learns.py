"""Whether a model has learnt: its held-out masked MSE against gene means and nearest neighbours, by depth.

Judges an existing run, which may have taken any time anywhere. Every side predicts the same positions of the same
held-out cells, those of the run's own evaluations; see `cellfoundry_training.knn_imputer` for what the neighbours do.
The run and its store are given by environment variables, since every suite shares one command.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cellfoundry_bench.errors import BenchError
from cellfoundry_bench.results import Curve, Row, SuiteResult
from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store import Store, open_store
from cellfoundry_kernels import MaskedCells
from cellfoundry_model.checkpoint import load_model
from cellfoundry_training import history
from cellfoundry_training.config import PretrainConfig, load_config
from cellfoundry_training.files import RunFiles
from cellfoundry_training.gene_means import gene_sums
from cellfoundry_training.heldout_sums import HeldoutSums
from cellfoundry_training.history import Record
from cellfoundry_training.knn_imputer import Choice, KnnImputer
from cellfoundry_training.objective import EVALUATION_STEP, mask_batch
from cellfoundry_training.splits import heldout_batches, heldout_cells, mean_cells, train_cells

RUN_VARIABLE = "CELLFOUNDRY_BENCH_RUN"
STORE_VARIABLE = "CELLFOUNDRY_BENCH_STORE"
MODEL = "model"
BEST_MEAN, PLAIN_MEAN = "each gene's mean, best constant", "each gene's mean, plain"
# Names of the neighbours' three votes, weak to strong.
PLAIN, WEIGHTED, STACKED = "nearest neighbours", "nearest neighbours, weighted", "nearest neighbours, stacked"
CURVE_POINTS = 100


@dataclass(frozen=True)
class Contest:
    """What everyone made of the held-out cells.

    Attributes:
        sums: squared errors and correlations of the model and the three votes.
        choice: what the neighbours were tuned to.
        parameters: of the model.
    """

    sums: dict[str, HeldoutSums]
    choice: Choice
    parameters: int


def run() -> SuiteResult:
    """Judge the run that the environment names."""
    run_dir, store_dir = _folder(RUN_VARIABLE, "a pretraining run"), _folder(STORE_VARIABLE, "its store")
    return judge(run_dir, store_dir)


def judge(run_dir: Path, store_dir: Path) -> SuiteResult:
    """Rows and the learning curve of a run on its store.

    Raises:
        BenchError: the run has no model yet, or the store has other genes than the model.
    """
    files = RunFiles(run_dir)
    records = history.read(files.metrics)
    best = history.best_evaluation(records)
    if best is None or not files.model.is_dir():
        raise BenchError(
            f"{run_dir} holds no model: give a run of `cellfoundry train pretrain` that was evaluated"
        )
    config, store = load_config(files.config), open_store(store_dir)
    contest = hold(files, config, store)
    rows = [
        *_opponent_rows(contest, _facts(contest, config, records, best)),
        *_depth_rows(contest),
        *_correlation_rows(contest),
        *_probe_rows(best),
    ]
    return SuiteResult(rows, [_curve(contest, records)])


def hold(files: RunFiles, config: PretrainConfig, store: Store) -> Contest:
    """Let every side predict the masked positions of the held-out cells."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(files.model)
    genes = store.vocabulary.genes
    if tuple(genes) != tuple(loaded.vocab_genes):
        raise BenchError(
            f"{store.path} has other genes than the model of {files.folder}: give the store it was trained on"
        )
    model = loaded.model.to(device)

    def mask(batch: CellBatch) -> MaskedCells:
        return mask_batch(batch, config, n_genes=len(genes), step=EVALUATION_STEP, device=device)

    imputer = KnnImputer(train_cells(store, config), mask, config, len(genes))
    means = gene_sums(mean_cells(store, config), config, len(genes))
    mean_G = torch.from_numpy(means.objective_mean_G).to(device)
    plain_G = torch.from_numpy(means.plain_mean_G).to(device)
    sums = {name: HeldoutSums(len(genes), device) for name in (MODEL, PLAIN, WEIGHTED, STACKED)}
    for batch in heldout_batches(heldout_cells(store, config), config):
        masked = mask(batch)
        with torch.inference_mode():
            guesses = {MODEL: model(masked)}
        votes = imputer.votes(batch, masked)
        for name, vote_X in (
            (PLAIN, votes.plain_X),
            (WEIGHTED, votes.weighted_X),
            (STACKED, votes.stacked_X),
        ):
            guesses[name] = torch.from_numpy(vote_X).to(device)
        gene_X = masked.mask_position_X
        for name, guess_X in guesses.items():
            sums[name].add(masked, batch.totals(), guess_X, mean_G[gene_X], plain_G[gene_X])
    return Contest(sums, imputer.choice, sum(parameter.numel() for parameter in model.parameters()))


def losses(contest: Contest) -> dict[str, float]:
    """Masked MSE of everyone by name, the gene means included."""
    by_name = {}
    for name, sums in contest.sums.items():
        measured = sums.losses()
        if measured is None:
            raise BenchError(
                "no position of a held-out cell was chosen: raise validation_share or eval_cells"
            )
        by_name[name] = measured[0]
        by_name[BEST_MEAN], by_name[PLAIN_MEAN] = measured[1:]
    return by_name


def _folder(variable: str, what: str) -> Path:
    """The folder that the environment names."""
    value = os.environ.get(variable, "")
    if not value or not Path(value).is_dir():
        raise BenchError(f"{variable} is {value!r}; set it to the folder of {what}, which this suite judges")
    return Path(value)


def _facts(contest: Contest, config: PretrainConfig, records: list[Record], best: Record) -> str:
    """What was trained how, and how the neighbours were tuned."""
    last, choice = history.steps(records)[-1], contest.choice
    name = config.model if isinstance(config.model, str) else "own sizes"
    return (
        f"{name}, {contest.parameters:,} parameters, {last['step']:,} steps in {last['seconds'] / 60:,.1f} min on "
        f"{last['cells']:,} cells with repeats, best at step {best['step']:,}; "
        f"{contest.sums[MODEL].cells:,} held-out cells; "
        f"neighbours: {choice.plain_k} plain, {choice.weighted_k} weighted with prior {choice.prior:g}; "
        f"config {config.hash()}"
    )


def _opponent_rows(contest: Contest, facts: str) -> list[Row]:
    by_name = losses(contest)
    ours = by_name.pop(MODEL)
    return [
        Row(
            f"held-out masked MSE, {name}",
            ours,
            "MSE",
            name,
            loss,
            loss / ours,
            bar=1.0,
            note="" if number else facts,
        )
        for number, (name, loss) in enumerate(by_name.items())
    ]


def _depth_rows(contest: Contest) -> list[Row]:
    rows = []
    for ours, peer in zip(contest.sums[MODEL].by_depth(), contest.sums[STACKED].by_depth(), strict=True):
        what = f"masked MSE, cells of {ours.depth} counts{', input thinned' if ours.thinned else ''}"
        note = f"{ours.cells:,} cells, {ours.positions:,} positions"
        if ours.loss and peer.loss is not None:
            rows.append(Row(what, ours.loss, "MSE", STACKED, peer.loss, peer.loss / ours.loss, note=note))
    return rows


def _correlation_rows(contest: Contest) -> list[Row]:
    """Of the model and of the strongest neighbours, a row each: a quotient of correlations would say little."""
    rows = []
    for name in (MODEL, STACKED):
        pearson = contest.sums[name].pearson()
        note = f"over the cells in which a gene was chosen, median of {pearson.genes:,} genes"
        if pearson.median is None:
            note = "no gene was chosen in enough held-out cells"
        rows.append(Row(f"Pearson correlation of a gene, {name}", pearson.median, "r", note=note))
    return rows


def _probe_rows(best: Record) -> list[Row]:
    if best["probe_accuracy"] is None:
        return []
    note = (
        f"{best['probe_cells']:,} labelled held-out cells, from the run's evaluation at step {best['step']:,}"
    )
    return [
        Row("linear probe, accuracy", best["probe_accuracy"], "share", note=note),
        Row("linear probe, macro-F1", best["probe_macro_f1"], "F1", note=note),
    ]


def _curve(contest: Contest, records: list[Record]) -> Curve:
    steps, by_name = history.steps(records), losses(contest)
    spans = np.array_split(np.arange(len(steps)), min(CURVE_POINTS, len(steps)))
    training = [
        (
            float(np.mean([steps[place]["cells"] for place in span])),
            float(np.mean([steps[place]["loss"] for place in span])),
        )
        for span in spans
    ]
    heldout = [
        (float(record["cells"]), float(record["heldout_loss"]))
        for record in history.evaluations(records)
        if record["heldout_loss"] is not None
    ]
    del by_name[MODEL], by_name[PLAIN_MEAN]
    return Curve(
        "Learning curve and what predicts without learning a network",
        "cells seen, repeats counted",
        "masked MSE, log1p per 10k",
        {"training batches, mean of spans": training, "held-out cells": heldout},
        by_name,
    )
