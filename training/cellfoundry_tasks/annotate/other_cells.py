"""How a difference of macro-F1 would turn out on other cells: training and test cells drawn again, both.

Scores over seeds say what other training cells would change; where all seeds test on the same cells, or a class has a
handful, other test cells can change more.

Legend: B bootstrap rounds, C labelled cells, S seeds, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cellfoundry_tasks.annotate.splits import FewShot

ROUNDS = 500
Classes = npt.NDArray[np.int64]
Difference = tuple[float, float, float]
"""Mean over seeds, and the ends of its 95 % interval."""


def differences(
    called: Mapping[str, Sequence[Classes]], rival: str, class_C: Classes, splits: Sequence[FewShot]
) -> dict[str, Difference]:
    """By how much the macro-F1 of each way is above that of ``rival`` on the same cells.

    A bootstrap (Efron & Tibshirani 1993, percentiles of 500 rounds, seed 0) of seeds, and within each class of the
    cells that test, drawn alike for all seeds.

    Args:
        called: way -> for each seed the class numbers of its test cells.
        rival: one of the ways.
        class_C: int64 class numbers of all cells.
        splits: of each seed.
    """
    rng = np.random.default_rng(0)
    weight_BC = _weights(class_C, splits, rng)
    seed_BS = rng.multinomial(len(splits), np.full(len(splits), 1 / len(splits)), ROUNDS) / len(splits)
    resampled = {key: np.empty((ROUNDS, len(splits))) for key in called}
    observed = {key: np.empty(len(splits)) for key in called}
    once_1C = np.ones((1, len(class_C)), dtype=np.float32)
    for seed, split in enumerate(splits):
        true = class_C[split.test]
        weights = np.concatenate([weight_BC[:, split.test], once_1C[:, split.test]])
        for key, of_seeds in called.items():
            f1 = weighted_macro_f1(true, of_seeds[seed], weights)
            resampled[key][:, seed], observed[key][seed] = f1[:-1], f1[-1]
    found = {}
    for key in called:
        gap_B = ((resampled[key] - resampled[rival]) * seed_BS).sum(1)
        low, high = np.quantile(gap_B, (0.025, 0.975))
        found[key] = (float((observed[key] - observed[rival]).mean()), float(low), float(high))
    return found


def weighted_macro_f1(
    true: Classes, called: Classes, weights: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """F1 averaged over the classes that cells of some weight have, for each row of ``weights`` (rows, cells)."""
    classes = np.arange(max(true.max(), called.max()) + 1)
    true_K = (true[:, None] == classes).astype(np.float32)
    called_K = (called[:, None] == classes).astype(np.float32)
    size = weights @ true_K
    both = size + weights @ called_K
    f1 = 2 * (weights @ (true_K * called_K)) / np.maximum(both, 1)
    found: npt.NDArray[np.float64] = f1.sum(1, where=size > 0) / (size > 0).sum(1)
    return found


def _weights(
    class_C: Classes, splits: Sequence[FewShot], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """How often each cell is drawn, (B, C): of each class as many as test in any seed."""
    weight_BC = np.zeros((ROUNDS, len(class_C)), dtype=np.float32)
    tests = np.unique(np.concatenate([split.test for split in splits]))
    for number in np.unique(class_C[tests]):
        cells = tests[class_C[tests] == number]
        weight_BC[:, cells] = rng.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), ROUNDS)
    return weight_BC
