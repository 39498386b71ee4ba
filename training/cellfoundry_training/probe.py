"""Linear probe: how well a straight cut through the cell embeddings tells labelled held-out cells apart.

Cells fall into two halves by a hash of their store row, label by label; a logistic regression on each half labels
the other. The embedding is the one `cellfoundry embed` writes, of whole cells: nothing is masked or thinned.

Legend: C cells, D width of the embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store.cell_keys import mix

MIN_CELLS = 10
"""Labelled cells that a label needs to take part: five on either side."""


@dataclass(frozen=True)
class Probe:
    """How often the probe is right.

    Attributes:
        accuracy: share of cells that get their label.
        macro_f1: F1 averaged over labels, rare ones weighing as much as common ones.
        cells: labelled cells that took part.
        labels: labels that took part.
    """

    accuracy: float
    macro_f1: float
    cells: int
    labels: int


@dataclass(frozen=True)
class LabelledCells:
    """Embeddings float32 (C, D), labels (C,) as text, and store rows int64 (C,)."""

    embedding_CD: npt.NDArray[np.float32]
    label_C: npt.NDArray[np.str_]
    row_C: npt.NDArray[np.int64]


def labelled_cells(
    encode: Callable[[CellBatch], npt.NDArray[np.float32]],
    batches: Iterable[CellBatch],
    column: str,
    max_cells: int,
    *,
    rank: int = 0,
    ranks: int = 1,
    device: torch.device | None = None,
) -> LabelledCells:
    """Embed the first ``max_cells`` cells of ``batches`` that have a label; cells without one are left out.

    Every rank must be given the same batches; it embeds every so-many-th and gets the others' embeddings. Collective
    where there are several ranks.

    Args:
        encode: a batch to its embeddings, (cells, D).
        batches: with the obs column ``column``.
        column: the labels.
        max_cells: bound of time and memory.
        rank: this process.
        ranks: how many share the work.
        device: where ranks exchange embeddings; needed with several ranks.
    """
    labels: list[str] = []
    rows: list[npt.NDArray[np.int64]] = []
    own: list[tuple[int, npt.NDArray[np.float32]]] = []
    for number, batch in enumerate(batches):
        cells = batch.select(np.flatnonzero(_has_label(batch.obs[column]))[: max_cells - len(labels)])
        if len(cells) and number % ranks == rank:
            own.append((len(labels), encode(cells)))
        labels += [str(label) for label in cells.obs[column]]
        rows.append(cells.row_ids)
        if len(labels) >= max_cells:
            break
    embedding_CD = _gathered(own, len(labels), ranks, device)
    return LabelledCells(
        embedding_CD, np.array(labels, dtype=np.str_), np.concatenate([*rows, np.empty(0, np.int64)])
    )


def linear_probe(cells: LabelledCells) -> Probe | None:
    """Fit on one half, judge on the other, both ways round; None if fewer than two labels have MIN_CELLS cells.

    Logistic regression (scikit-learn, L2 with C = 1) on features standardised by the half it is fitted on.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    finite_C = np.isfinite(cells.embedding_CD).all(1)
    names, counts = np.unique(cells.label_C[finite_C], return_counts=True)
    kept_C = finite_C & np.isin(cells.label_C, names[counts >= MIN_CELLS])
    x_CD, label_C = cells.embedding_CD[kept_C], cells.label_C[kept_C]
    kept_labels = np.unique(label_C)
    if len(kept_labels) < 2:
        return None
    first_C = _first_half(label_C, cells.row_C[kept_C])
    predicted_C = np.empty_like(label_C)
    # One thread: BLAS threads that spin for each other make these small fits a hundred times slower on a busy machine.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for fit_C in (first_C, ~first_C):
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
            predicted_C[~fit_C] = probe.fit(x_CD[fit_C], label_C[fit_C]).predict(x_CD[~fit_C])
    return Probe(
        float(accuracy_score(label_C, predicted_C)),
        float(f1_score(label_C, predicted_C, average="macro")),
        len(label_C),
        len(kept_labels),
    )


def _first_half(label_C: npt.NDArray[np.str_], row_C: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which cells are in the first half: every other one of each label's cells in the order of a hash."""
    order_C = np.lexsort((mix(row_C.astype(np.uint64)), label_C))
    _, starts, counts = np.unique(label_C[order_C], return_index=True, return_counts=True)
    place_C = np.arange(len(label_C)) - np.repeat(starts, counts)
    first_C = np.empty(len(label_C), dtype=np.bool_)
    first_C[order_C] = place_C % 2 == 0
    return first_C


def _has_label(column: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each value is there; a missing one is None or NaN, which is not equal to itself."""
    return np.array([value is not None and value == value for value in column.tolist()], dtype=np.bool_)


def _gathered(
    own: list[tuple[int, npt.NDArray[np.float32]]], cells: int, ranks: int, device: torch.device | None
) -> npt.NDArray[np.float32]:
    """All ranks' embeddings in one matrix; each row comes from one rank, so the sum over ranks is exact."""
    width = torch.tensor(own[0][1].shape[1] if own else 0, device=device)
    if ranks > 1:
        dist.all_reduce(width, op=dist.ReduceOp.MAX)
    embedding_CD = np.zeros((cells, int(width)), dtype=np.float32)
    for start, part in own:
        embedding_CD[start : start + len(part)] = part
    if ranks == 1:
        return embedding_CD
    total = torch.from_numpy(embedding_CD).to(device)
    dist.all_reduce(total)
    return total.cpu().numpy()
