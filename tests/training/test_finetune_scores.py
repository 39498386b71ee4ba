"""Scores of fine-tuning against numbers worked out by hand, and the report's pages that show them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cellfoundry.report.finetune_report import page
from cellfoundry_model.head import HeadConfig
from cellfoundry_training.finetune.config import FinetuneConfig
from cellfoundry_training.finetune.fitting import Epoch
from cellfoundry_training.finetune.result import CellNumbers, Finetuned
from cellfoundry_training.finetune.scores import (
    ClassificationScores,
    RegressionScores,
    classification_scores,
    regression_scores,
)

TRUE = np.array([0, 0, 0, 1, 1, 2])
PROBABILITY = np.array(
    [
        [0.8, 0.1, 0.1],
        [0.6, 0.3, 0.1],
        [0.2, 0.5, 0.3],  # a cell of class 0 called 1
        [0.3, 0.6, 0.1],
        [0.2, 0.7, 0.1],
        [0.1, 0.7, 0.2],  # the cell of class 2 called 1
    ]
)
CLASSES = ("a", "b", "c")


@pytest.fixture
def scores() -> ClassificationScores:
    return classification_scores(TRUE, PROBABILITY, CLASSES)


def test_accuracy_and_what_the_commonest_class_reaches(scores: ClassificationScores) -> None:
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.majority_accuracy == pytest.approx(3 / 6)


def test_f1_is_averaged_over_classes_and_one_never_called_counts_0(scores: ClassificationScores) -> None:
    a, b, c = scores.classes
    assert (a.name, a.cells, a.precision, a.recall) == ("a", 3, 1.0, pytest.approx(2 / 3))
    assert (b.name, b.cells, b.precision, b.recall) == ("b", 2, 0.5, 1.0)
    assert (c.name, c.cells, c.precision, c.recall, c.f1) == ("c", 1, 0.0, 0.0, 0.0)
    assert a.f1 == pytest.approx(4 / 5)
    assert b.f1 == pytest.approx(2 / 3)
    assert scores.macro_f1 == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)


def test_auroc_is_the_share_of_pairs_in_order_averaged_over_classes(scores: ClassificationScores) -> None:
    # a: 0.8, 0.6, 0.2 against 0.3, 0.2, 0.1: of 9 pairs 3 + 3 + 1 in order and one tie.
    # b: 0.6, 0.7 against 0.1, 0.3, 0.5, 0.7: of 8 pairs 3 + 3 in order and one tie.
    # c: 0.2 against 0.1, 0.1, 0.3, 0.1, 0.1: 4 of 5 pairs.
    assert scores.auroc == pytest.approx((7.5 / 9 + 6.5 / 8 + 4 / 5) / 3)


def test_rows_of_the_confusion_matrix_are_the_true_classes(scores: ClassificationScores) -> None:
    assert scores.confusion == ((2, 1, 0), (0, 2, 0), (0, 1, 0))


def test_numbers_are_scored_as_worked_out_by_hand() -> None:
    scores = regression_scores(np.float32([1, 2, 3, 4]), np.float32([1, 2, 2, 5]))
    # Deviations from the means 2.5: (-1.5, -0.5, 0.5, 1.5) and (-1.5, -0.5, -0.5, 2.5).
    assert scores.pearson == pytest.approx((2.25 + 0.25 - 0.25 + 3.75) / np.sqrt(5 * 9))
    assert scores.r2 == pytest.approx(1 - 2 / 5)
    assert scores.mae == pytest.approx(2 / 4)


def test_a_constant_prediction_has_no_correlation_and_can_be_worse_than_the_mean() -> None:
    scores = regression_scores(np.float32([1, 2, 3]), np.float32([3, 3, 3]))
    assert scores == RegressionScores(None, pytest.approx(1 - 5 / 2), pytest.approx(1.0))
    assert str(scores).startswith("Pearson undefined")


def result(
    scores: ClassificationScores | RegressionScores,
    classes: tuple[str, ...],
    true: np.ndarray,
    predicted: np.ndarray,
) -> Finetuned:
    return Finetuned(
        FinetuneConfig(label="age"),
        HeadConfig("classification" if classes else "regression", "age", classes, "all", "t4", 8, 0),
        "cells.h5ad",
        "0" * 64,
        CellNumbers(70, 10, len(true), 0, 0, {}),
        9,
        [Epoch(1, 2.0, 1.5, 0.1), Epoch(2, 1.0, 1.2, 0.1)],
        scores,
        true,
        predicted,
        {"read": 1.0, "train": 2.0},
        "cpu",
    )


def test_a_page_of_numbers_shows_predicted_against_true() -> None:
    true = np.linspace(20, 80, 20, dtype=np.float32)
    predicted = true + np.float32(1.0)
    text = page(result(regression_scores(true, predicted), (), true, predicted))
    assert "Predicted against given" in text
    assert "Pearson correlation" in text
    assert "Confusion matrix" not in text
    assert text.count("<svg") == 2


def test_one_cell_left_out_is_one_cell() -> None:
    true = np.float32([1, 2, 3])
    finetuned = replace(
        result(regression_scores(true, true), (), true, true), cells=CellNumbers(70, 10, 3, 1, 1, {"c": 1})
    )
    assert finetuned.left_out() == [
        "1 cell without a label",
        "1 labelled cell without counts in the model's genes",
        "1 cell of classes with fewer than 3 cells: c (1)",
    ]


def test_a_page_of_very_many_classes_names_them_all() -> None:
    classes = tuple(f"type {number:02}" for number in range(45))
    true = np.arange(90) % 45
    scores = classification_scores(true, np.eye(45)[true], classes)
    text = page(result(scores, classes, true, true))
    assert "Confusion matrix" in text
    assert text.count("<svg") == 2
    assert all(name in text for name in classes)
