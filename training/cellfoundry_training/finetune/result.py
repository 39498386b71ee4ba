"""What a fine-tuning run came to: the cells it used, its epochs and its scores."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy.typing as npt

from cellfoundry_model.head import HeadConfig
from cellfoundry_training.finetune.config import FinetuneConfig
from cellfoundry_training.finetune.fitting import Epoch
from cellfoundry_training.finetune.labels import MIN_CLASS_CELLS
from cellfoundry_training.finetune.scores import ClassificationScores, RegressionScores


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
            reasons.append(f"{_counted(cells.without_label, 'cell')} without a label")
        if cells.without_counts:
            reasons.append(
                f"{_counted(cells.without_counts, 'labelled cell')} without counts in the model's genes"
            )
        if cells.rare:
            sizes = ", ".join(f"{name} ({size})" for name, size in cells.rare.items())
            reasons.append(
                f"{_counted(sum(cells.rare.values()), 'cell')} of classes with fewer than {MIN_CLASS_CELLS} cells: "
                f"{sizes}"
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


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
