"""The whole task: cells and model in, errors and clusterings out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt

from cellfoundry_model.checkpoint import LoadedModel
from cellfoundry_tasks.cells import Source, aligned, check_is_there, chosen_rows, read_counts
from cellfoundry_tasks.enhance.cluster_level import ClusterLevel, cluster_round, reference_of, steps_of_round
from cellfoundry_tasks.enhance.clustering import Reference
from cellfoundry_tasks.enhance.config import EnhanceConfig
from cellfoundry_tasks.enhance.gene_level import MODEL, GeneLevel, predictions
from cellfoundry_tasks.enhance.models import Models, open_models
from cellfoundry_tasks.enhance.peers import Scvi
from cellfoundry_tasks.enhance.rounds import Round, thinned_round
from cellfoundry_tasks.enhance.smoothing import LOG_OF_MEAN, MEAN_OF_LOGS
from cellfoundry_tasks.errors import TaskError
from cellfoundry_tasks.facts import model_facts
from cellfoundry_tasks.numba_print import numba_print
from cellfoundry_tasks.representation import Progress

LEAST_CELLS = 16
"""With counts: MAGIC's kernel reaches three times as far as its 5 nearest neighbours, and the cell itself."""
LEAST_JUDGED = 3
"""Of fewer no clusters can be made."""
JUDGED_DEPTH = 0.1
WHERE_DATA_IS = (
    "give raw counts; the published experiment thinned Baron's pancreas cells (GEO GSE84133), and 10x's PBMC 3k "
    "(10xgenomics.com/datasets) does as well"
)


@dataclass(frozen=True)
class Enhanced:
    """What came out.

    Attributes:
        config: the task's settings.
        source: name of the cells' source.
        cells: of the source.
        median_counts: median over cells of their counts of shared genes.
        genes: that the source and the model share.
        judged: cells that are judged at the gene level.
        model: size and origin of the model that says expression, as ``model_facts`` has them.
        embedding_model: the same of the model that embeds.
        gene_level: errors of everyone at every depth.
        cluster_level: clusters of everyone's representations.
        seconds: of the whole task.
    """

    config: EnhanceConfig
    source: str
    cells: int
    median_counts: float
    genes: int
    judged: int
    model: dict[str, Any]
    embedding_model: dict[str, Any]
    gene_level: GeneLevel
    cluster_level: ClusterLevel
    seconds: float

    @property
    def judged_depth(self) -> float:
        """The depth of the summary: 10 %, or the nearest to it."""
        return min(self.config.depths, key=lambda depth: abs(depth - JUDGED_DEPTH))

    def __str__(self) -> str:
        """One line for people."""
        depth = self.judged_depth
        named = {MODEL: self.gene_level.methods(depth)[MODEL]}
        for vote in (MEAN_OF_LOGS, LOG_OF_MEAN):
            best = self.gene_level.best_smoothing(depth, "mae", vote)
            named |= dict([best] if best else [])
        means = [f"{tally.scores()['mae'].mean:.3f} ({name})" for name, tally in named.items()]
        return (
            f"MAE of expressed genes at {100 * depth:g} % depth: {', '.join(means)}; {self.judged:,} of "
            f"{self.cells:,} cells, {self.config.seeds} seeds"
        )


@numba_print()
def enhance(
    data: Source,
    model: str | Path,
    config: EnhanceConfig,
    *,
    embedding_model: str | Path | None = None,
    layer: str | None = None,
    progress: Progress | None = None,
) -> Enhanced:
    """Thin cells of full depth, enhance them by the model and by its peers, and compare with what they were.

    Args:
        data: raw counts: an AnnData, or a path that ``cellfoundry embed`` takes.
        model: model directory; of official weights the part "gene", whose decoder says expression.
        config: the task's settings.
        embedding_model: model directory that embeds instead, for official weights the part "rde".
        layer: matrix of the data to read; by default the first with whole counts.
        progress: called with (label, done, total).

    Raises:
        DataError, ModelError, TaskError: one sentence on what to mend.
    """
    began = time.perf_counter()
    check_is_there(data, WHERE_DATA_IS)
    models = open_models(model, embedding_model)
    full = full_cells(read_counts(data, layer=layer), models.expression.vocab_genes)
    eligible = _eligible(full, config)
    judged = _drawn(eligible, config.cells)
    clustered, reference = reference_of(full, _drawn(eligible, config.clustered_cells), config.label)
    tell = progress or (lambda label, done, total: None)
    peers = _FirstScvi(config.scvi_epochs)
    gene_level = _gene_level(full, judged, models, peers, config, tell)
    cluster_level = _cluster_level(full, clustered, reference, models, peers, config, tell)
    return Enhanced(
        config,
        str(full.uns["source"]),
        full.n_obs,
        float(np.median(np.asarray(full.X.sum(1)))),
        full.n_vars,
        len(judged),
        _facts(models.expression.loaded),
        _facts(models.embedding.loaded),
        gene_level,
        cluster_level,
        time.perf_counter() - began,
    )


def full_cells(cells: ad.AnnData, genes: tuple[str, ...]) -> ad.AnnData:
    """Cells over the genes that they share with the model; TaskError where one has no counts of these."""
    full = aligned(cells, genes)
    empty = int((np.diff(full.X.indptr) == 0).sum())
    if empty:
        raise TaskError(
            f"{full.uns['source']}: {empty:,} cells have no counts of the model's genes; remove them first"
        )
    return full


def _facts(loaded: LoadedModel) -> dict[str, Any]:
    """Of a model, and which part of official weights it is."""
    return model_facts(loaded) | {key: loaded.info[key] for key in ("part",) if key in loaded.info}


class _FirstScvi:
    """scVI of the first thinning to each depth, trained once: it costs much, and the draw changes little for it."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._of_depth: dict[float, Scvi] = {}

    def of(self, drawn: Round) -> Scvi | None:
        """None for further thinnings, or where it is to be left out."""
        if drawn.seed > 0 or not self._epochs:
            return None
        if drawn.depth not in self._of_depth:
            self._of_depth[drawn.depth] = Scvi(drawn.cells, drawn.seed, self._epochs)
        return self._of_depth[drawn.depth]


def _eligible(full: ad.AnnData, config: EnhanceConfig) -> npt.NDArray[np.int64]:
    """Rows of the cells that may be judged."""
    if config.heldout_column is None:
        return np.arange(full.n_obs)
    rows = np.flatnonzero(chosen_rows(full, config.heldout_column))
    if len(rows) < LEAST_JUDGED:
        raise TaskError(
            f"{full.uns['source']}: obs column {config.heldout_column!r} marks {len(rows)} cells as held out; "
            f"at least {LEAST_JUDGED} are needed"
        )
    return rows


def _drawn(rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """All rows, or so many of them drawn at random with seed 0, ascending."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def _gene_level(
    full: ad.AnnData,
    rows: npt.NDArray[np.int64],
    models: Models,
    peers: _FirstScvi,
    config: EnhanceConfig,
    tell: Progress,
) -> GeneLevel:
    level = GeneLevel(full.n_obs)
    rounds = [(depth, seed) for depth in config.depths for seed in range(config.seeds)]
    for number, (depth, seed) in enumerate(rounds):
        tell("gene level, thinnings", number, len(rounds))
        drawn = _judgeable(full, rows, depth, seed)
        level.empty[depth, seed] = len(rows) - len(drawn.judged)
        twin = models.expression_twin if seed == 0 else None
        for method, predicted_JG in predictions(drawn, models.expression, twin, peers.of(drawn)):
            level.add(drawn, method, predicted_JG)
    tell("gene level, thinnings", len(rounds), len(rounds))
    return level


def _cluster_level(
    full: ad.AnnData,
    rows: npt.NDArray[np.int64],
    reference: Reference,
    models: Models,
    peers: _FirstScvi,
    config: EnhanceConfig,
    tell: Progress,
) -> ClusterLevel:
    level = ClusterLevel(config.cluster_depth, reference.origin, reference.number, len(rows))
    total = sum(
        steps_of_round(config.cluster_depth, seed, config.scvi_epochs > 0) for seed in range(config.seeds)
    )
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        tell("cluster level, representations", done, total)

    tell("cluster level, representations", 0, total)
    for seed in range(config.seeds):
        drawn = _judgeable(full, rows, config.cluster_depth, seed)
        here = reference.of(np.isin(rows, drawn.rows[drawn.judged]))
        cluster_round(level, drawn, here, models, peers.of(drawn), step)
    return level


def _judgeable(full: ad.AnnData, rows: npt.NDArray[np.int64], depth: float, seed: int) -> Round:
    """A thinning; TaskError where it leaves too few cells to judge, or to smooth over."""
    drawn = thinned_round(full, rows, depth, seed)
    if drawn.cells.n_obs < LEAST_CELLS:
        raise TaskError(
            f"{full.uns['source']}: thinned to {depth:g}, {drawn.cells.n_obs} of the {full.n_obs} cells have counts; "
            f"MAGIC needs {LEAST_CELLS}, so give more cells or larger depths"
        )
    if len(drawn.judged) < LEAST_JUDGED:
        raise TaskError(
            f"{full.uns['source']}: thinned to {depth:g}, {len(rows) - len(drawn.judged)} of the {len(rows)} judged "
            "cells are empty; give larger depths"
        )
    return drawn
