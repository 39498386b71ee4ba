"""Which labelled cells train and which test, for a number of cells a class and a seed.

Legend: C labelled cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellfoundry_tasks.annotate.config import AnnotateConfig, Shot
from cellfoundry_tasks.annotate.labelled import Labelled

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FewShot:
    """Positions of cells, ascending, int64; no cell is in both parts."""

    train: Positions
    test: Positions


def few_shot(labelled: Labelled, config: AnnotateConfig, shot: Shot, seed: int) -> FewShot:
    """The draw of ``seed``: its test cells are those of every shot, and its 5 training cells a class are among its 10.

    A class with fewer training cells than ``shot`` gives all that it has.
    """
    train, test = [], []
    for number in range(len(labelled.classes)):
        cells = np.flatnonzero(labelled.class_C == number)
        cells = np.random.default_rng([seed, number]).permutation(cells)
        if labelled.heldout_C is None:
            tests = max(1, round(config.test_share * len(cells)))
            drawn = np.arange(len(cells)) < min(tests, len(cells) - 1)
        else:
            drawn = labelled.heldout_C[cells]
        test.append(cells[drawn])
        train.append(cells[~drawn] if shot == "all" else cells[~drawn][:shot])
    return FewShot(np.sort(np.concatenate(train)), np.sort(np.concatenate(test)))


def seeds_of(labelled: Labelled, config: AnnotateConfig, shot: Shot) -> range:
    """Seeds with draws of their own: where a column says which cells test, all the others are one draw only."""
    one_draw = shot == "all" and labelled.heldout_C is not None
    return range(1 if one_draw else config.seeds)


def scarce_classes(labelled: Labelled, config: AnnotateConfig, shot: Shot) -> dict[str, int]:
    """Classes with fewer training cells than ``shot``, and how many they have."""
    if shot == "all":
        return {}
    train = few_shot(labelled, config, "all", 0).train
    size_K = np.bincount(labelled.class_C[train], minlength=len(labelled.classes))
    return {name: size for name, size in zip(labelled.classes, size_K.tolist(), strict=True) if size < shot}
