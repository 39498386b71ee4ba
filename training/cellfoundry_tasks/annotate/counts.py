"""What the counts themselves give: principal components of the training cells alone, and CellTypist's genes.

Legend: C cells, K components.
"""

from __future__ import annotations

import anndata as ad
import pandas as pd

from cellfoundry_tasks.annotate.probe import Basis, Floats
from cellfoundry_tasks.annotate.splits import FewShot
from cellfoundry_tasks.baselines import HIGHLY_VARIABLE_GENES, log_normalized
from cellfoundry_tasks.extra import library
from cellfoundry_tasks.quiet import EVERY_WARNING, quiet


def normalised(cells: ad.AnnData) -> ad.AnnData:
    """log1p of counts per 10,000 with ``var["highly_variable"]``, chosen over all cells; cells and genes are numbered
    instead of named.
    """
    names = pd.Index([f"cell{row}" for row in range(cells.n_obs)])
    # CellTypist takes no repeated names.
    genes = pd.Index([f"gene{column}" for column in range(cells.n_vars)])
    found = ad.AnnData(log_normalized(cells), obs=pd.DataFrame(index=names), var=pd.DataFrame(index=genes))
    _mark_variable(found)
    return found


def training_pca(logged: ad.AnnData, split: FewShot, components: int) -> tuple[Floats, Floats]:
    """Features (cells, K) of training and test cells; genes and axes are of the training cells alone."""
    train = ad.AnnData(logged.X[split.train], var=logged.var[[]])
    _mark_variable(train)
    genes = train.var["highly_variable"].to_numpy()
    train_CG = train.X[:, genes].toarray()
    basis = Basis.of(train_CG, components)
    return basis.features(train_CG), basis.features(logged.X[split.test][:, genes].toarray())


def _mark_variable(logged: ad.AnnData) -> None:
    with quiet(EVERY_WARNING):  # of genes that are zero in all of a few cells
        library("scanpy").pp.highly_variable_genes(
            logged, n_top_genes=min(HIGHLY_VARIABLE_GENES, logged.n_vars)
        )
