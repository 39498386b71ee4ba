"""How much cell type an embedding carries: a linear probe beside PCA of the same cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

FOLDS = 5
MIN_CELLS_PER_TYPE = 10


@dataclass(frozen=True)
class ProbeResult:
    """Accuracy and macro-F1 over the folds: mean and standard deviation."""

    accuracy: float
    accuracy_sd: float
    macro_f1: float
    macro_f1_sd: float
    width: int


def common_types(labels: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
    """Cells whose type has at least 10 cells: a 5-fold split of fewer leaves folds without any."""
    names, counts = np.unique(labels, return_counts=True)
    return np.isin(labels, names[counts >= MIN_CELLS_PER_TYPE])


def linear_probe(features: npt.NDArray[np.float32], labels: npt.NDArray[np.str_]) -> ProbeResult:
    """Logistic regression on standardised features, 5-fold stratified cross-validation, seed 0.

    Args:
        features: float32, (cells, width), finite.
        labels: str, (cells,).
    """
    accuracies, f1_scores = [], []
    # Too small to share: with BLAS threads that spin for each other this step took about 200 s on a busy machine, the
    # fits by one thread take 1.4 s.
    with threadpool_limits(1):
        for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(features, labels):
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            probe.fit(features[train], labels[train])
            predicted = probe.predict(features[test])
            accuracies.append(accuracy_score(labels[test], predicted))
            f1_scores.append(f1_score(labels[test], predicted, average="macro"))
    return ProbeResult(
        float(np.mean(accuracies)),
        float(np.std(accuracies)),
        float(np.mean(f1_scores)),
        float(np.std(f1_scores)),
        features.shape[1],
    )


def pca_of_counts(counts: sparse.csr_matrix, components: int = 50) -> npt.NDArray[np.float32]:
    """PCA scores of log1p(counts per 10,000), float32, (cells, components): the field's plain baseline."""
    totals = np.asarray(counts.sum(axis=1)).ravel()
    scaled = sparse.diags(1e4 / totals) @ counts
    scaled.data = np.log1p(scaled.data)
    with threadpool_limits(1):  # thousands of small products, as in linear_probe
        return PCA(components, svd_solver="arpack", random_state=0).fit_transform(scaled).astype(np.float32)
