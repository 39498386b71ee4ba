"""First values of the position table: genes that vary together begin near each other.

From random vectors a model first has to find out, one masked gene at a time, which genes go together. The principal
components of the training cells say so from the start, as GloVe and SVD vectors do for words.

Legend: C cells, G genes, D encoder width, K components.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.value_embedding import EMBEDDING_STD
from cellfoundry_training.errors import TrainingError

START_CELLS = 32_768
"""Cells whose components are taken: 0.4 GB at 1,500 expressed genes, on rank 0 alone."""
VARIANCE_FLOOR = 0.05
"""Added to a gene's variance before the genes are brought to one scale: without it the noise of genes that a handful
of cells express would be as loud as a marker."""
BOUND = 5.0
"""Largest value, in standard deviations of its column: a few genes of the ribosome would dwarf the others."""


def gene_components(
    batches: Iterable[CellBatch], n_genes: int, width: int, *, seed: int
) -> npt.NDArray[np.float32]:
    """Starting vectors (G, D) of standard deviation EMBEDDING_STD from the first START_CELLS of ``batches``.

    D - 2 loadings of the principal components of log1p of counts per 10,000, genes scaled to nearly equal variance;
    the logarithm of the gene's mean, and its spread; all turned by a random rotation, so that no coordinate is
    special to the layers. Genes that no cell expresses get small random vectors.

    Raises TrainingError where there are fewer cells or genes than D - 1.
    """
    # Here, because ranks that start from random vectors need not wait 0.9 CPU-seconds for it.
    from sklearn.decomposition import PCA

    value_CG = _log_normalized(batches, n_genes)
    components = width - 2
    if components < 1 or min(value_CG.shape) <= components:
        raise TrainingError(
            f"gene_start components: {components} components cannot be computed from {value_CG.shape[0]:,} training "
            f"cells of {n_genes:,} genes; use gene_start random, or another encoder_width"
        )
    random = np.random.default_rng(seed)
    mean_G = np.asarray(value_CG.mean(0)).ravel()
    square_G = np.asarray(value_CG.multiply(value_CG).mean(0)).ravel()
    spread_G = np.sqrt(np.maximum(square_G - mean_G**2, 0))
    scale_G = 1 / np.sqrt(spread_G**2 + VARIANCE_FLOOR)
    pca = PCA(components, svd_solver="arpack", random_state=seed)
    pca.fit((value_CG @ sp.diags(scale_G)).tocsr())
    column_GD = np.column_stack([pca.components_.T, np.log(mean_G + 1e-4), np.sqrt(spread_G)])
    column_GD[:, components:] -= column_GD[:, components:].mean(0)
    column_GD /= column_GD.std(0)
    rotation_DD = np.linalg.qr(random.normal(size=(width, width)))[0]
    start_GD = EMBEDDING_STD * np.clip(column_GD, -BOUND, BOUND) @ rotation_DD
    silent_G = mean_G == 0
    start_GD[silent_G] = 0.2 * EMBEDDING_STD * random.normal(size=(int(silent_G.sum()), width))
    return start_GD.astype(np.float32)


def _log_normalized(batches: Iterable[CellBatch], n_genes: int) -> sp.csr_matrix:
    """log1p of counts per 10,000 of the first cells, (C, G)."""
    parts: list[sp.csr_matrix] = []
    cells = 0
    for batch in batches:
        value = np.log1p(1e4 * batch.counts / np.repeat(batch.totals(), np.diff(batch.indptr)))
        parts.append(
            sp.csr_matrix((value.astype(np.float32), batch.gene_ids, batch.indptr), (len(batch), n_genes))
        )
        cells += len(batch)
        if cells >= START_CELLS:
            break
    return sp.vstack(parts, format="csr")
