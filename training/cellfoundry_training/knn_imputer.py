"""k-nearest-neighbour imputation of the masked positions: the opponent that knows cells, without a network.

Neighbours of a cell are found among training cells by what the model sees of it (masked, perhaps thinned), and vote
with their raw values. Three votes, weak to strong:

- ``plain``: the mean of the neighbours' values.
- ``weighted``: each value weighs as often as the objective asks for it (a non-zero about ten times as often as a
  zero), and `prior` pseudo-neighbours vote for the gene's mean: the best constant among the neighbours.
- ``stacked``: least squares of the target on the weighted vote and the value that the position shows, apart for
  positions that show the mask token, a zero (which they nearly always are), or a random or kept value.

Near means a small angle after truncated SVD of log1p of counts per 10,000: masking shortens a cell's vector more than
it turns it (on 28,000 cells of blood and pancreas, Euclidean distances gave the weighted vote 2 to 4 % more error, and
30 components instead of 50 changed it by less than 1 %). The numbers of neighbours and the prior are chosen on
training cells that are left out of their own neighbours. Memory: the training cells as three sparse matrices, 16 bytes
a non-zero, and a dense row of genes for each of 64 cells at a time.

Legend: G genes, R reference (training) cells, C query cells, K neighbours, X chosen positions, S components,
F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.neighbors import NearestNeighbors

from cellfoundry_data.batch import CellBatch
from cellfoundry_kernels import MaskedCells
from cellfoundry_training.config import PretrainConfig
from cellfoundry_training.gene_means import chosen_probability

COMPONENTS = 50
K_GRID = (5, 10, 20, 30, 50, 70, 100, 150, 200, 300, 400)
PRIOR_GRID = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
REFERENCE_CELLS = 50_000
"""Training cells that can be neighbours; 50,000 of 1,200 genes are 1 GB."""
TUNING_CELLS = 400
CELLS_AT_ONCE = 64

FloatArray = npt.NDArray[np.float64]
Mask = Callable[[CellBatch], MaskedCells]
Neighbours = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Query:
    """A batch as the model sees it, and what is asked.

    Attributes:
        input_CG: the encoder's gene tokens, log1p per 10,000.
        cell_X: cell of each chosen position.
        gene_X: gene of each.
        shown_X: what the position shows: NaN for the mask token, else a value.
        target_X: log1p per 10,000 of the raw cell.
        row_C: store rows.
    """

    input_CG: sparse.csr_matrix
    cell_X: npt.NDArray[np.int64]
    gene_X: npt.NDArray[np.int64]
    shown_X: FloatArray
    target_X: FloatArray
    row_C: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Votes:
    """Predictions at the chosen positions, each (X,)."""

    plain_X: FloatArray
    weighted_X: FloatArray
    stacked_X: FloatArray


def query_of(batch: CellBatch, masked: MaskedCells, n_genes: int, mask_token_id: float) -> Query:
    """What a masked batch shows and asks."""
    cu_seqlens, position_N = masked.cu_seqlens.cpu().numpy(), masked.position_N.cpu().numpy()
    cell_N = np.repeat(np.arange(len(batch)), np.diff(cu_seqlens))
    gene_N = position_N < n_genes  # the others are T and S
    value_N = masked.value_N.cpu().numpy().astype(np.float64)
    shape = (len(batch), n_genes)
    input_CG = sparse.csr_matrix((value_N[gene_N], (cell_N[gene_N], position_N[gene_N])), shape)
    shown_X = masked.mask_value_X.cpu().numpy().astype(np.float64)
    return Query(
        input_CG,
        masked.mask_cell_index_X.cpu().numpy(),
        masked.mask_position_X.cpu().numpy(),
        np.where(shown_X == mask_token_id, np.nan, shown_X),
        masked.target_X.cpu().numpy().astype(np.float64),
        batch.row_ids,
    )


class Reference:
    """Training cells as sparse matrices of one pattern, float32: values, and weights beyond a zero's."""

    def __init__(self, batches: Iterable[CellBatch], config: PretrainConfig, n_genes: int) -> None:
        cells = _joined(batches, REFERENCE_CELLS)
        counts = cells.counts.astype(np.float64)
        total_Z = np.repeat(cells.totals(), np.diff(cells.indptr))
        value_Z = np.log1p(counts / total_Z * 1e4)
        extra_Z = chosen_probability(counts, total_Z, config) - config.zero_mask_prob
        weighted_Z = (extra_Z + config.zero_mask_prob) * value_Z
        shape = (len(cells), n_genes)
        self.cells, self.zero_weight = cells, config.zero_mask_prob
        self.value_RG, self.extra_RG, self.weighted_RG = (
            sparse.csr_matrix((data_Z.astype(np.float32), cells.gene_ids, cells.indptr), shape)
            for data_Z in (value_Z, extra_Z, weighted_Z)
        )
        self.weight_G = self.zero_weight + np.asarray(self.extra_RG.mean(0), dtype=np.float64).ravel()
        weighted_G = np.asarray(self.weighted_RG.mean(0), dtype=np.float64).ravel()
        self.gene_mean_G = np.divide(
            weighted_G, self.weight_G, out=np.zeros_like(weighted_G), where=self.weight_G > 0
        )


@dataclass(frozen=True)
class Choice:
    """What the training cells said is best.

    Attributes:
        plain_k: neighbours of the plain vote.
        weighted_k: neighbours of the weighted vote.
        prior: pseudo-neighbours that vote for the gene's mean there.
        coefficients_3F: of the stacked vote, a row for each kind of position, see ``_features``.
    """

    plain_k: int
    weighted_k: int
    prior: float
    coefficients_3F: FloatArray


class KnnImputer:
    """Fits on training cells, then votes for held-out ones.

    Args:
        batches: training cells; the first REFERENCE_CELLS become neighbours.
        mask: the objective's masking, with masks that tune the imputer.
        config: the run's masking probabilities.
        n_genes: of the vocabulary.
    """

    def __init__(
        self, batches: Iterable[CellBatch], mask: Mask, config: PretrainConfig, n_genes: int
    ) -> None:
        self._reference = Reference(batches, config, n_genes)
        self._mask, self._n_genes = mask, n_genes
        self._mask_token_id = config.architecture(n_genes).mask_token_id
        components = min(COMPONENTS, n_genes - 1, len(self._reference.cells) - 1)
        self._svd = TruncatedSVD(components, random_state=0).fit(self._reference.value_RG)
        self._search = NearestNeighbors(metric="cosine", algorithm="brute")
        self._search.fit(self._svd.transform(self._reference.value_RG))
        self.choice = self._tuned()

    def votes(self, batch: CellBatch, masked: MaskedCells) -> Votes:
        """Predictions at the chosen positions of masked cells, none of which may be a training cell."""
        query = query_of(batch, masked, self._n_genes, self._mask_token_id)
        choice = self.choice
        neighbour_CK = self._neighbours(query, max(choice.plain_k, choice.weighted_k))
        plain_X = _sums(neighbour_CK[:, : choice.plain_k], self._reference.value_RG, query) / choice.plain_k
        weighted_X = self._with_prior(
            *self._weighted_sums(neighbour_CK[:, : choice.weighted_k], query), query, choice.prior
        )
        features_XF, kind_X = self._features(weighted_X, query)
        stacked_X = (features_XF * choice.coefficients_3F[kind_X]).sum(1)
        return Votes(plain_X, weighted_X, stacked_X)

    def _tuned(self) -> Choice:
        """Smallest masked MSE on training cells, none of them its own neighbour."""
        own_C = np.arange(min(TUNING_CELLS, len(self._reference.cells)))
        batch = self._reference.cells.select(own_C)
        query = query_of(batch, self._mask(batch), self._n_genes, self._mask_token_id)
        grid = [k for k in K_GRID if k < len(self._reference.cells)] or [len(self._reference.cells) - 1]
        near_CK = self._neighbours(query, grid[-1] + 1)
        # Itself to the end, the others in order.
        order_CK = np.argsort(near_CK == own_C[:, None], axis=1, kind="stable")
        near_CK = np.take_along_axis(near_CK, order_CK, axis=1)[:, :-1]

        zero_X = np.zeros_like(query.target_X)
        plain_X, weighted_X, weight_X = zero_X, zero_X, zero_X
        plain_errors: dict[int, float] = {}
        weighted: dict[tuple[int, float], FloatArray] = {}
        for fewer, k in zip([0, *grid], grid, strict=False):
            added_CK = near_CK[:, fewer:k]
            plain_X = plain_X + _sums(added_CK, self._reference.value_RG, query)
            plain_errors[k] = _mean_square(plain_X / k - query.target_X)
            more_X, more_weight_X = self._weighted_sums(added_CK, query)
            weighted_X, weight_X = weighted_X + more_X, weight_X + more_weight_X
            for prior in PRIOR_GRID:
                weighted[k, prior] = self._with_prior(weighted_X, weight_X, query, prior)
        best = min(weighted, key=lambda pair: _mean_square(weighted[pair] - query.target_X))
        coefficients_3F = self._least_squares(weighted[best], query)
        return Choice(min(plain_errors, key=plain_errors.__getitem__), *best, coefficients_3F)

    def _neighbours(self, query: Query, k: int) -> Neighbours:
        """The ``k`` nearest reference cells of each cell, nearest first, (C, k)."""
        place_CS = self._svd.transform(query.input_CG)
        neighbour_CK: Neighbours = self._search.kneighbors(place_CS, k, return_distance=False)
        return neighbour_CK

    def _weighted_sums(self, neighbour_CK: Neighbours, query: Query) -> tuple[FloatArray, FloatArray]:
        """Sums of weight times value, and of weights, over neighbours at the chosen positions, (X,) each."""
        reference = self._reference
        zeros_weight = neighbour_CK.shape[1] * reference.zero_weight
        weight_X = _sums(neighbour_CK, reference.extra_RG, query) + zeros_weight
        return _sums(neighbour_CK, reference.weighted_RG, query), weight_X

    def _with_prior(
        self, weighted_X: FloatArray, weight_X: FloatArray, query: Query, prior: float
    ) -> FloatArray:
        """Weighted mean where ``prior`` average cells vote for the gene's mean; that mean where nothing weighs."""
        mean_X = self._reference.gene_mean_G[query.gene_X]
        prior_X = prior * self._reference.weight_G[query.gene_X]
        total_X = weight_X + prior_X
        return np.divide(weighted_X + prior_X * mean_X, total_X, out=mean_X.copy(), where=total_X > 0)

    def _features(self, weighted_X: FloatArray, query: Query) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Features (X, F) of the stacked vote and each position's kind (X,): 0 mask token, 1 zero, 2 another value."""
        hidden_X = np.isnan(query.shown_X)
        shown_X = np.where(hidden_X, 0.0, query.shown_X)
        kind_X = np.where(hidden_X, 0, np.where(shown_X > 0, 2, 1))
        return np.stack([np.ones_like(weighted_X), weighted_X, shown_X], 1), kind_X

    def _least_squares(self, weighted_X: FloatArray, query: Query) -> FloatArray:
        features_XF, kind_X = self._features(weighted_X, query)
        coefficients_3F = np.zeros((3, features_XF.shape[1]))
        for kind in range(3):
            of_kind_X = kind_X == kind
            if of_kind_X.any():
                # lstsq takes the shortest of all solutions where a feature is constant, as `shown` is for two kinds.
                solution = np.linalg.lstsq(features_XF[of_kind_X], query.target_X[of_kind_X])
                coefficients_3F[kind] = solution[0]
        return coefficients_3F


def _joined(batches: Iterable[CellBatch], max_cells: int) -> CellBatch:
    """The first ``max_cells`` cells as one batch."""
    parts: list[CellBatch] = []
    cells = 0
    for batch in batches:
        parts.append(batch.select(np.arange(min(len(batch), max_cells - cells))))
        cells += len(parts[-1])
        if cells >= max_cells:
            break
    lengths = np.concatenate([np.diff(part.indptr) for part in parts])
    return CellBatch(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([part.gene_ids for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.row_ids for part in parts]),
    )


def _sums(neighbour_CK: Neighbours, matrix_RG: sparse.csr_matrix, query: Query) -> FloatArray:
    """Sum over a cell's neighbours at its chosen positions, (X,); dense for a few cells at a time."""
    cells, k = neighbour_CK.shape
    indptr = np.arange(0, cells * k + 1, k)
    ones_CR = sparse.csr_matrix(
        (np.ones(cells * k, np.float32), neighbour_CK.ravel(), indptr), (cells, matrix_RG.shape[0])
    )
    parts = []
    for start in range(0, cells, CELLS_AT_ONCE):
        first, last = np.searchsorted(query.cell_X, [start, start + CELLS_AT_ONCE])
        dense_CG = (ones_CR[start : start + CELLS_AT_ONCE] @ matrix_RG).toarray()
        parts.append(dense_CG[query.cell_X[first:last] - start, query.gene_X[first:last]].astype(np.float64))
    return np.concatenate(parts)


def _mean_square(error_X: FloatArray) -> float:
    return float(np.square(error_X).mean())
