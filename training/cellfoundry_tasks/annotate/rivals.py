"""What a probe of the model has to be better than: CellTypist, and the commonest class.

Legend: C cells, G genes, K classes.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from cellfoundry_tasks.extra import library
from cellfoundry_tasks.quiet import EVERY_WARNING, quiet

CELLTYPIST_CLIP = 10.0
CELLTYPIST_STEPS = 1_000

Classes = npt.NDArray[np.int64]


def commonest(class_C: Classes, cells: int) -> Classes:
    """The commonest class of the training cells, for each of ``cells`` cells."""
    return np.full(cells, np.bincount(class_C).argmax())


def celltypist_classes(train: ad.AnnData, class_C: Classes, test: ad.AnnData) -> Classes:
    """CellTypist's classes of ``test`` after training on ``train``; both log1p of counts per 10,000 of all genes,
    of which the training uses those in ``train.var["highly_variable"]``: from 5 cells a class it then reached a
    macro-F1 of .95 and .73 (pancreas, PBMC), with all genes .86 and .71.

    CellTypist 1.7.1 hands its classifier an argument that scikit-learn 1.8 has no more, so its default training is
    retraced here (unit variance, at most 10, one-vs-rest logistic regression with C = 1) and its own code predicts.
    """
    genes = train.var_names[train.var["highly_variable"]]
    scaler = StandardScaler()
    scaled_CG = np.minimum(scaler.fit_transform(train[:, genes].X.toarray()), CELLTYPIST_CLIP)
    rest = OneVsRestClassifier(LogisticRegression(C=1.0, max_iter=CELLTYPIST_STEPS)).fit(scaled_CG, class_C)
    classifier = LogisticRegression()
    names = np.asarray(rest.classes_).astype(str)
    fitted = {
        "classes_": names,
        "coef_": np.concatenate([each.coef_ for each in rest.estimators_]),
        "intercept_": np.concatenate([each.intercept_ for each in rest.estimators_]),
        "features": genes.to_numpy(dtype=object),
        "n_features_in_": len(genes),
    }
    for name, value in fitted.items():
        setattr(classifier, name, value)
    with celltypist_library() as celltypist:
        model = celltypist.Model(classifier, scaler, {"number_celltypes": len(names)})
        found = celltypist.annotate(test, model=model, majority_voting=False)
    return found.predicted_labels["predicted_labels"].to_numpy(dtype=str).astype(np.int64)


@contextmanager
def celltypist_library() -> Iterator[Any]:
    """CellTypist, silent; TaskError where it is not installed. Importing it makes a folder, at home unless told
    another, and sets up the root logger.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    # It warns of what it calls in scanpy and anndata.
    with quiet(EVERY_WARNING), tempfile.TemporaryDirectory() as folder:
        told = os.environ.setdefault("CELLTYPIST_FOLDER", folder)
        try:
            celltypist = library("celltypist")
        finally:
            if told == folder:
                del os.environ["CELLTYPIST_FOLDER"]
            root.handlers, root.level = handlers, level
        yield celltypist
