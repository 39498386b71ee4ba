"""Peers that need no pretraining: MAGIC and scVI, fitted to the thinned cells themselves.

Legend: C cells, J judged cells, G genes, S genes that a thinned cell shows, L latent width.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import numpy.typing as npt

from cellfoundry_tasks.extra import library
from cellfoundry_tasks.quiet import EVERY_WARNING, quiet
from cellfoundry_tasks.random_state import own_random_state

Floats = npt.NDArray[np.float32]
POSTERIOR_SAMPLES = 25
"""Of scVI's latent variables; the noise of a single one adds to its errors."""

# They are quiet: they warn of their own deprecated calls, and of workers and devices that nobody here chooses.


def magic(cells: ad.AnnData, seed: int) -> Floats:
    """MAGIC (van Dijk et al. 2018) with its defaults, as its authors' tutorial has it: on the square root of counts per
    10,000. Float32 (C, G) in log1p of counts per 10,000.
    """
    with quiet(EVERY_WARNING):
        operator = library("magic").MAGIC(n_jobs=1, random_state=seed, verbose=0)
        root_CG = operator.fit_transform(np.sqrt(_per_10k(cells)), genes="all_genes")
        dense_CG = np.asarray(root_CG.toarray() if hasattr(root_CG, "toarray") else root_CG)
    return np.log1p(np.square(dense_CG.astype(np.float32)))


class Scvi:
    """scVI (Lopez et al. 2018) with its defaults, trained on the CPU.

    Torch's and numpy's random states stay as they are. Genes that no thinned cell shows are left out of its training
    and get 0.

    Args:
        cells: raw counts (C, G), each cell with some.
        seed: of weights and batches.
        epochs: passes over the cells.
    """

    def __init__(self, cells: ad.AnnData, seed: int, epochs: int) -> None:
        self._genes = cells.n_vars
        self._shown_G = np.flatnonzero(np.asarray(cells.X.sum(0)).ravel() > 0)
        shown = cells[:, self._shown_G].copy()
        with quiet(EVERY_WARNING), own_random_state(seed):
            peer = library("scvi").model.SCVI
            peer.setup_anndata(shown)
            self._model = peer(shown)
            self._model.train(
                max_epochs=epochs,
                # All cells: their errors are judged against counts that it never sees. A drawn split would depend on
                # scVI's own seed, whose setter changes the process's environment.
                train_size=1.0,
                shuffle_set_split=False,
                accelerator="cpu",
                # Its default warm-up takes 400 epochs, more than are run here.
                plan_kwargs={"n_epochs_kl_warmup": max(1, epochs // 2)},
                enable_progress_bar=False,
                logger=False,
                enable_checkpointing=False,
            )

    def expression(self, rows: npt.NDArray[np.int64]) -> Floats:
        """Its normalised expression of some cells, mean of 25 posterior samples, float32 (J, G) in log1p of counts per
        10,000.
        """
        # One after the other: scVI's own n_samples holds all of them at once, 1 GB for 500 cells of 20,000 genes.
        sum_JS = np.zeros((len(rows), len(self._shown_G)), dtype=np.float32)
        with quiet(EVERY_WARNING), own_random_state(0):
            for _ in range(POSTERIOR_SAMPLES):
                sum_JS += self._model.get_normalized_expression(
                    indices=rows, library_size=1e4, return_numpy=True
                )
        found_JG = np.zeros((len(rows), self._genes), dtype=np.float32)
        found_JG[:, self._shown_G] = np.log1p(sum_JS / POSTERIOR_SAMPLES)
        return found_JG

    def latent(self) -> Floats:
        """Means of the latent variables of all cells, float32 (C, L)."""
        with quiet(EVERY_WARNING), own_random_state(0):
            return np.asarray(self._model.get_latent_representation(), dtype=np.float32)


def _per_10k(cells: ad.AnnData) -> npt.NDArray[np.float32]:
    total_C = np.asarray(cells.X.sum(1)).ravel()
    return cells.X.multiply(1e4 / total_C[:, None]).tocsr().astype(np.float32)
