"""A fine-tuning run: labelled cells of a source into a model directory with a head.

Legend: C cells of the source, E those with a label and counts, W width of a cell's vector.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from anndata import AnnData
from torch import nn

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.store_cells import StoreCells, open_cells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.checkpoint import LoadedModel, check_replaceable, load_model, save_model
from cellfoundry_model.embedder import Embedder
from cellfoundry_model.head import Head, HeadConfig
from cellfoundry_model.head_files import HEAD_HASH, head_files, head_hash
from cellfoundry_model.token_batch import TokenizedCells
from cellfoundry_model.tokens import tokenize
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.finetune.config import FinetuneConfig
from cellfoundry_training.finetune.fitting import Epoch, Fitting, Objective, outputs
from cellfoundry_training.finetune.inputs import (
    Inputs,
    Progress,
    Source,
    TokenInputs,
    VectorInputs,
    read_cells,
)
from cellfoundry_training.finetune.labels import (
    MIN_CLASS_CELLS,
    Labels,
    read_labels,
    without_rare_classes,
)
from cellfoundry_training.finetune.scores import (
    ClassificationScores,
    RegressionScores,
    classification_scores,
    regression_scores,
)
from cellfoundry_training.finetune.split import Split, strata, stratified_split
from cellfoundry_training.finetune.tuned import check_tune, merged, tuned

RECORD_FILE, REPORT_FILE = "finetune.json", "report.html"
SCALE_CELLS = 512
"""Training cells whose vectors set the head's scales where the encoder learns too."""


@dataclass(frozen=True)
class CellNumbers:
    """What became of the source's cells.

    Attributes:
        train: cells that trained.
        validation: cells that decided when to stop.
        test: cells that the scores are of.
        without_label: cells with an empty label, left out.
        without_counts: labelled cells without counts in the model's genes, left out.
        rare: classes with too few cells -> their cells, left out.
    """

    train: int
    validation: int
    test: int
    without_label: int
    without_counts: int
    rare: dict[str, int]


@dataclass(frozen=True)
class Finetuned:
    """A finished run.

    Attributes:
        config: what was asked for.
        head: what its head predicts.
        source: name of the cells.
        base_sha256: weights it started from.
        cells: what became of the source's cells.
        parameters: numbers that learned.
        epochs: in order.
        scores: on the test cells.
        test_true: labels of the test cells: class numbers or numbers.
        test_predicted: what the model says of them.
        seconds: wall time of reading (with the encoder's pass where only the head learns), and of training.
        device: where it ran.
    """

    config: FinetuneConfig
    head: HeadConfig
    source: str
    base_sha256: str
    cells: CellNumbers
    parameters: int
    epochs: list[Epoch]
    scores: ClassificationScores | RegressionScores
    test_true: npt.NDArray[Any]
    test_predicted: npt.NDArray[Any]
    seconds: dict[str, float]
    device: str

    @property
    def best(self) -> Epoch:
        """The epoch whose weights were kept."""
        return min(self.epochs, key=lambda epoch: epoch.validation_loss)

    def left_out(self) -> list[str]:
        """One sentence for every reason that cells were left out for."""
        cells, reasons = self.cells, []
        if cells.without_label:
            reasons.append(f"{cells.without_label:,} cells without a label")
        if cells.without_counts:
            reasons.append(f"{cells.without_counts:,} labelled cells without counts in the model's genes")
        if cells.rare:
            sizes = ", ".join(f"{name} ({size})" for name, size in cells.rare.items())
            reasons.append(
                f"{sum(cells.rare.values()):,} cells of classes with fewer than {MIN_CLASS_CELLS} cells: {sizes}"
            )
        return reasons

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.cells.test:,} held-out cells: {self.scores}; {self.parameters:,} parameters learned from "
            f"{self.cells.train:,} cells, best after {self.best.epoch} of {len(self.epochs)} epochs, "
            f"{sum(self.seconds.values()):,.0f} s on {self.device}"
        )

    def record(self) -> dict[str, Any]:
        """All but the single cells, as JSON's types; kept in the model directory."""
        return {
            "config": self.config.model_dump(),
            "head": self.head.to_dict(),
            "source": self.source,
            "base_sha256": self.base_sha256,
            "cells": asdict(self.cells),
            "parameters": self.parameters,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best_epoch": self.best.epoch,
            "scores": asdict(self.scores),
            "seconds": self.seconds,
            "device": self.device,
        }


def finetune(
    model_dir: str | Path,
    src: Source,
    out: str | Path,
    config: FinetuneConfig,
    *,
    layer: str | None = None,
    report: Callable[[Finetuned], str] | None = None,
    progress: Progress | None = None,
    watch: Callable[[Epoch], None] | None = None,
) -> Finetuned:
    """Train a head, and as much of the encoder as ``config`` says, on an obs column; write a model directory.

    Args:
        model_dir: the model to start from.
        src: file or folder of raw counts, a store, or an AnnData; its labelled cells must fit in memory, as tokens
            (12 bytes a non-zero), or where only the head learns as vectors.
        out: model directory to write, whole or not at all; an earlier model there is replaced.
        config: what to learn, and how.
        layer: matrix of an AnnData to read; by default the first with whole counts.
        report: makes a page that is kept beside the model.
        progress: called with (label, done, total).
        watch: called after every epoch.

    Raises:
        DataError, ModelError: see the layers.
        TrainingError: a label that cannot be learnt, an encoder that cannot be tuned so, or a diverging loss.
    """
    started = time.monotonic()
    out = Path(out)
    _check_out(Path(model_dir), out)
    device = _device(config.device)
    loaded = load_model(model_dir, device)
    check_tune(config, loaded.config.encoder_depth)
    source = "the AnnData" if isinstance(src, AnnData) else str(src)
    cells = open_cells(src, Vocabulary(loaded.vocab_genes), layer=layer)
    labels = read_labels(cells.obs, config.label, config.task, source)
    without_label = int((~labels.has_label_C).sum())
    labels, rare = without_rare_classes(labels)
    strata(labels, source)  # refuses labels that cannot be learnt before any cell is read
    inputs, row_E = _inputs(loaded, cells, labels, config, device, progress)
    without_counts = int(labels.has_label_C.sum()) - len(row_E)
    has_counts_C = np.zeros_like(labels.has_label_C)
    has_counts_C[row_E] = True
    labels, rarer = without_rare_classes(replace(labels, has_label_C=labels.has_label_C & has_counts_C))
    read = time.monotonic()
    kept_E = np.flatnonzero(labels.has_label_C[row_E])
    drawn = stratified_split(
        strata(labels, source),
        validation_share=config.validation_share,
        test_share=config.test_share,
        seed=config.seed,
    )
    split = Split(kept_E[drawn.train], kept_E[drawn.validation], kept_E[drawn.test])
    value_E = labels.value_C[row_E]

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(config.seed)  # of the head's and the adapters' first weights
        # Where the encoder stands still its vectors are the inputs.
        learning = nn.Identity() if config.tune == "head" else tuned(loaded.model, config)
        head = _head(loaded, labels, config).to(device)
    _set_scales(head, learning, inputs, split, value_E, config)
    objective = Objective(
        head, torch.from_numpy(value_E).to(device), split.train, balanced=config.class_weights == "balanced"
    )
    fitting = Fitting(learning, head, inputs, objective, config)
    epochs = fitting.run(split, progress, watch)
    true, predicted, scores = _judged(merged(learning, config), head, inputs, split, value_E, config)
    result = Finetuned(
        config,
        head.config,
        source,
        str(loaded.info["weights_sha256"]),
        CellNumbers(
            len(split.train),
            len(split.validation),
            len(split.test),
            without_label,
            without_counts,
            rare | rarer,
        ),
        fitting.parameters,
        epochs,
        scores,
        true,
        predicted,
        {"read": read - started, "train": time.monotonic() - read},
        str(device),
    )
    _save(loaded, head, result, out, report)
    return result


def _check_out(model_dir: Path, out: Path) -> None:
    check_replaceable(out)
    if out.exists() and model_dir.exists() and out.samefile(model_dir):
        raise TrainingError(f"{out} is the model to start from and would be overwritten; give another --out")


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device cuda: torch sees no GPU here; use cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _inputs(
    loaded: LoadedModel,
    cells: SourceCells | StoreCells,
    labels: Labels,
    config: FinetuneConfig,
    device: torch.device,
    progress: Progress | None,
) -> tuple[Inputs, npt.NDArray[np.int64]]:
    """The labelled cells' inputs, and their rows in the source, int64 (E,)."""
    if config.tune == "head":
        embedder = Embedder(
            loaded, device=str(device), precision=config.precision, max_tokens=config.max_tokens
        )
        vectors, row_E = read_cells(
            cells,
            labels.has_label_C,
            lambda batch: embedder.encode(batch, pool=config.pool, target=config.target),
            progress,
        )
        return VectorInputs(np.concatenate(vectors), device), row_E

    def tokens_of(batch: CellBatch) -> Any:
        return tokenize(batch, n_genes=loaded.config.n_genes, target=config.target)

    tokens, row_E = read_cells(cells, labels.has_label_C, tokens_of, progress)
    return TokenInputs(TokenizedCells(tokens), config.max_tokens, device), row_E


def _head(loaded: LoadedModel, labels: Labels, config: FinetuneConfig) -> Head:
    width = loaded.config.encoder_width * (4 if config.pool == "all" else 1)
    return Head(
        HeadConfig(
            labels.task, labels.column, labels.classes, config.pool, config.target, width, config.hidden
        )
    )


@torch.no_grad()
def _set_scales(
    head: Head,
    encoder: nn.Module,
    inputs: Inputs,
    split: Split,
    value_E: npt.NDArray[Any],
    config: FinetuneConfig,
) -> None:
    """Scales of the head: of vectors from training cells as the encoder sees them now, of labels from all of these."""
    chosen = np.random.default_rng([config.seed, 0]).permutation(split.train)
    if config.tune != "head":
        chosen = chosen[:SCALE_CELLS]
    vectors = [encoder(given) for _, given in inputs.parts(np.sort(chosen))]
    label = torch.from_numpy(value_E[split.train]) if head.config.task == "regression" else None
    head.set_scales(torch.cat(vectors), label, per_channel=config.tune == "head")


def _judged(
    encoder: nn.Module,
    head: Head,
    inputs: Inputs,
    split: Split,
    value_E: npt.NDArray[Any],
    config: FinetuneConfig,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], ClassificationScores | RegressionScores]:
    """Labels of the test cells, what the model says of them, and how right that is."""
    true = value_E[split.test]
    found = outputs(encoder, head, inputs, split.test, config.precision)
    if head.config.task == "regression":
        return true, found.numpy(), regression_scores(true, found.numpy())
    probability = found.double().softmax(1).numpy()
    return true, probability.argmax(1), classification_scores(true, probability, head.config.classes)


def _save(
    loaded: LoadedModel,
    head: Head,
    result: Finetuned,
    out: Path,
    report: Callable[[Finetuned], str] | None,
) -> None:
    record = result.record()
    files = head_files(head)
    extra = loaded.info | {
        HEAD_HASH: head_hash(files),
        "finetuned": {key: record[key] for key in ("config", "source", "base_sha256")},
    }
    files[RECORD_FILE] = (json.dumps(record, indent=2) + "\n").encode()
    if report:
        files[REPORT_FILE] = report(result).encode()
    save_model(loaded.model, loaded.vocab_genes, out, extra, files)
