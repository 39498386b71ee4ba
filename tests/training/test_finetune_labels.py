"""From an obs column to labels, and from labels to the cells that train, stop and judge."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cellfoundry_training.errors import TrainingError
from cellfoundry_training.finetune.labels import Labels, read_labels, without_rare_classes
from cellfoundry_training.finetune.split import check_training_numbers, strata, stratified_split


def labels_of(values: object, task: str | None = None) -> Labels:
    obs = pd.DataFrame({"kind": values})
    obs.index = obs.index.astype(str)
    return read_labels(obs, "kind", task, "cells.h5ad")


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (pd.Categorical(["b", None, "a", "b"]), "classification", ("a", "b")),
        (["b", "", "a", None], "classification", ("a", "b")),
        ([True, False, True, True], "classification", ("False", "True")),
        ([0.5, 1.5, np.nan, 3.0], "regression", ()),
        ([3, 1, 2, 2], "regression", ()),
        (pd.array([3, None, 2, 2], dtype="Int64"), "regression", ()),
    ],
    ids=["category", "text", "bool", "float", "int", "Int64"],
)
def test_the_column_decides_the_task(values: object, task: str, classes: tuple[str, ...]) -> None:
    labels = labels_of(values)
    assert (labels.task, labels.classes) == (task, classes)
    missing = pd.Series(values).isna() | (pd.Series(values).astype(str) == "")
    assert labels.has_label_C.tolist() == (~missing).tolist()


def test_a_column_that_is_there_twice_is_told_of() -> None:
    obs = pd.DataFrame([["a", "b"]] * 4, columns=["kind", "kind"])
    with pytest.raises(TrainingError, match="cells: obs has 2 columns 'kind'; rename all but one of them"):
        read_labels(obs, "kind", None, "cells")


def test_numbers_as_classes_keep_their_names_beside_missing_ones() -> None:
    labels = labels_of([10.0, 2.0, np.nan, 2.0], "classification")
    assert labels.classes == ("10", "2")
    assert labels.value_C[labels.has_label_C].tolist() == [0, 1, 1]
    assert labels_of([0.5, 2.0], "classification").classes == ("0.5", "2.0")


@pytest.mark.parametrize(
    ("values", "task", "words"),
    [
        ([None, None], None, "obs column 'kind' is empty for all 2 cells"),
        (["1", "x"], "regression", "holds 'x' in row 1 .* --task classification"),
        ([1.0, np.inf], None, "holds inf in row 1 .* real numbers between"),
        ([1.0, 1e39], None, r"holds 1e\+39 in row 1 .* real numbers between -3.4e\+38 and 3.4e\+38"),
        ([2 + 3j, 1.0], None, r"holds \(2\+3j\) in row 0 .* real numbers"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(values: object, task: str | None, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        labels_of(values, task)


def test_a_missing_column_is_named_with_its_nearest() -> None:
    with pytest.raises(TrainingError, match=r"cells.h5ad: no obs column 'knid'; the nearest is 'kind'"):
        read_labels(pd.DataFrame({"kind": ["a"]}), "knid", None, "cells.h5ad")
    with pytest.raises(TrainingError, match="its obs has no columns"):
        read_labels(pd.DataFrame(index=["cell"]), "kind", None, "cells.h5ad")


def test_text_that_is_numbers_can_be_regressed() -> None:
    assert labels_of(["1", "2.5"], "regression").value_C.tolist() == [1.0, 2.5]


def test_rare_classes_go_and_the_others_are_numbered_anew() -> None:
    labels, rare = without_rare_classes(labels_of(["c", "a", "b", "c", "c", "a", "a", None, "b"]))
    assert rare == {"b": 2}
    assert labels.classes == ("a", "c")
    assert labels.value_C[labels.has_label_C].tolist() == [1, 0, 1, 1, 0, 0]


def test_one_class_cannot_be_classified() -> None:
    labels, _ = without_rare_classes(labels_of(["a"] * 5 + ["b"] * 2))
    with pytest.raises(TrainingError, match="only 'a' has as many"):
        strata(labels, "cells.h5ad")


@pytest.mark.parametrize(
    ("values", "words"), [([1.0] * 20, "is 1 in all cells"), ([1.0, 2.0], "needs 10 cells")]
)
def test_numbers_too_few_or_too_alike_cannot_be_regressed(values: list[float], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        strata(labels_of(values), "cells.h5ad")


def test_numbers_that_are_alike_in_the_training_cells_cannot_be_regressed() -> None:
    with pytest.raises(TrainingError, match=r"'age' is 3 in all 20 training cells, .* name another column"):
        check_training_numbers(np.full(20, 3.0), "age", "cells.h5ad")


@pytest.mark.parametrize("shares", [(0.1, 0.2), (0.49, 0.49), (0.01, 0.01)])
def test_every_class_is_in_every_part_and_no_cell_in_two(shares: tuple[float, float]) -> None:
    stratum_C = np.repeat(np.arange(4), [3, 4, 57, 1000])
    split = stratified_split(stratum_C, validation_share=shares[0], test_share=shares[1], seed=0)
    parts = [split.train, split.validation, split.test]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(stratum_C)))
    assert all((np.bincount(stratum_C[part], minlength=4) > 0).all() for part in parts)
    assert (np.bincount(stratum_C[split.test])[3], np.bincount(stratum_C[split.validation])[3]) == (
        round(1000 * shares[1]),
        round(1000 * shares[0]),
    )


def test_a_split_depends_on_the_seed_alone() -> None:
    stratum_C = np.arange(200) % 3
    first, again, other = (
        stratified_split(stratum_C, validation_share=0.1, test_share=0.2, seed=seed) for seed in (0, 0, 1)
    )
    assert np.array_equal(first.test, again.test)
    assert not np.array_equal(first.test, other.test)


def test_numbers_are_split_by_their_rank() -> None:
    values = np.random.default_rng(0).lognormal(size=1000).astype(np.float32)
    split = stratified_split(strata(labels_of(values), ""), validation_share=0.1, test_share=0.2, seed=0)
    for part, share in ((split.train, 0.7), (split.validation, 0.1), (split.test, 0.2)):
        assert len(part) == round(1000 * share)
        # Each tenth of the ranks has its share of every part.
        assert (np.bincount(np.digitize(values[part], np.quantile(values, np.arange(0.1, 1, 0.1)))) > 0).all()
