"""The gene level: everyone's prediction of thinned cells at their full depth, and how far it is from the truth.

Legend: C cells left after thinning, J judged cells among them, G genes of the source, V genes of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import anndata as ad
import numpy as np
import numpy.typing as npt

from cellfoundry_model.embedder import Embedder
from cellfoundry_tasks.baselines import log_normalized
from cellfoundry_tasks.enhance.gene_errors import gene_errors
from cellfoundry_tasks.enhance.peers import Scvi, magic
from cellfoundry_tasks.enhance.rounds import Round
from cellfoundry_tasks.enhance.smoothing import LOG_OF_MEAN, MEAN_OF_LOGS, gene_means, smoothed
from cellfoundry_tasks.enhance.tally import Tally
from cellfoundry_tasks.representation import represent

MODEL, TWIN, RAW = "model", "random weights", "thinned counts"
MEANS, ONE = "gene means", "one molecule of each gene"
MAGIC, SCVI, KNN = "MAGIC", "scVI", "kNN smoothing"

Floats = npt.NDArray[np.float32]


@dataclass
class GeneLevel:
    """Errors of everyone at every depth.

    Attributes:
        cells: of the data set.
        tallies: (depth, method) -> errors; of kNN smoothing one method for each mean and k.
        empty: (depth, seed) -> judged cells in which the thinning left nothing.
    """

    cells: int
    tallies: dict[tuple[float, str], Tally] = field(default_factory=dict)
    empty: dict[tuple[float, int], int] = field(default_factory=dict)

    def add(self, drawn: Round, method: str, predicted_JG: Floats) -> None:
        """Score predictions of the judged cells, log1p of counts per 10,000."""
        tally = self.tallies.setdefault((drawn.depth, method), Tally(self.cells))
        errors = gene_errors(drawn.true_JG, predicted_JG, drawn.full_total_J)
        tally.add(drawn.rows[drawn.judged], errors)

    def methods(self, depth: float) -> dict[str, Tally]:
        """Everyone's errors at a depth."""
        return {method: tally for (at, method), tally in self.tallies.items() if at == depth}

    def best_smoothing(self, depth: float, key: str, vote: str) -> tuple[str, Tally] | None:
        """kNN smoothing with the number of neighbours that is best for this very score of these very cells, which the
        model is not granted; None where no number of neighbours has the score, as the correlation of a constant.
        """
        sign = -1.0 if key.startswith("pcc") else 1.0
        means = {
            method: sign * scores[key].mean
            for method, tally in self.methods(depth).items()
            if method.startswith(smoothing_name(vote)) and key in (scores := tally.scores())
        }
        if not means:
            return None
        best = min(means, key=means.__getitem__)
        return best, self.tallies[depth, best]


def smoothing_name(vote: str) -> str:
    """Name of kNN smoothing by a mean, before its k."""
    return f"{KNN}, {vote}"


def predictions(
    drawn: Round, embedder: Embedder, twin: Embedder | None, scvi: Scvi | None
) -> Iterator[tuple[str, Floats]]:
    """Name and prediction (J, G) of everyone, one after the other; ``twin`` and ``scvi`` where they take part."""
    judged = drawn.cells[drawn.judged]
    yield MODEL, enhanced(judged, embedder, drawn.fold)
    if twin:
        yield TWIN, enhanced(judged, twin, drawn.fold)
    shape = drawn.true_JG.shape
    yield RAW, log_normalized(judged).toarray()
    yield MEANS, np.broadcast_to(gene_means(drawn.cells), shape)
    yield ONE, np.broadcast_to(np.log1p(1e4 / drawn.full_total_J)[:, None], shape).astype(np.float32)
    for k, log_of_mean_JG, mean_of_logs_JG in smoothed(drawn.cells, drawn.judged):
        yield f"{smoothing_name(LOG_OF_MEAN)}, k={k}", log_of_mean_JG
        yield f"{smoothing_name(MEAN_OF_LOGS)}, k={k}", mean_of_logs_JG
    yield MAGIC, magic(drawn.cells, drawn.seed)[drawn.judged]
    if scvi:
        yield SCVI, scvi.expression(drawn.judged)


def enhanced(cells: ad.AnnData, embedder: Embedder, fold: float) -> Floats:
    """The model's expression of cells at ``fold`` times their depth, as pretraining had it: S is log10 of what the cell
    shows and T log10 of what it is to show. Float32 (C, G), 0 at least: the model may say less, a cell cannot.
    """
    expression_CV = represent(cells, embedder, output="expression", target=f"f{fold:g}")
    return np.maximum(expression_CV[:, cells.var["position"].to_numpy()], 0.0)
