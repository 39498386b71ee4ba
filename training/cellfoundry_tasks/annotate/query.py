"""Labels for new cells from a labelled reference.

Legend: C query cells.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellfoundry_model.checkpoint import LoadedModel
from cellfoundry_tasks.annotate.annotator import Annotator, Called, few_shot_scores, names_of
from cellfoundry_tasks.annotate.config import AnnotateConfig
from cellfoundry_tasks.annotate.judgement import Judgement, judge
from cellfoundry_tasks.annotate.labelled import read_labelled
from cellfoundry_tasks.annotate.novelty import Limits
from cellfoundry_tasks.annotate.vectors import variable_genes, vectors_of
from cellfoundry_tasks.cells import Source, read_counts
from cellfoundry_tasks.facts import model_facts
from cellfoundry_tasks.numba_print import numba_print
from cellfoundry_tasks.representation import Progress, check_features, no_expression, open_model

LABEL, LIKELIEST, CONFIDENCE, UNKNOWN = (
    f"cellfoundry_{name}" for name in ("label", "likeliest", "confidence", "unknown")
)
NO_CLASS = "unknown"


@dataclass(frozen=True)
class QueryResult:
    """New cells with labels.

    Attributes:
        config: what was asked for.
        source: name of the reference.
        query: name of the new cells.
        classes: class -> reference cells.
        left_out: a phrase for every reason that reference cells, or the model's expression, were left out.
        features: what the labels are predicted from.
        few_shot: kind of features -> the macro-F1 it was chosen by; none where it was asked for.
        temperature: of the confidence.
        limits: of the known.
        judgement: on cells held out of the reference.
        columns: new obs columns (C rows, in the query's order): the label, "unknown" where no class fits; the
            likeliest class; its calibrated probability, float32; whether no class fits, bool.
        model: facts of the model.
        device: where it ran.
        seconds: wall time.
    """

    config: AnnotateConfig
    source: str
    query: str
    classes: dict[str, int]
    left_out: tuple[str, ...]
    features: str
    few_shot: dict[str, float]
    temperature: float
    limits: Limits
    judgement: Judgement
    columns: pd.DataFrame
    model: dict[str, Any]
    device: str
    seconds: float

    @property
    def unknown_share(self) -> float:
        """Share of the query's cells that no class fits."""
        return float(self.columns[UNKNOWN].mean())

    def record(self) -> dict[str, Any]:
        """All but the single cells, as JSON's types."""
        found = {key: value for key, value in vars(self).items() if key != "columns"}
        return found | {
            "config": self.config.model_dump(),
            "limits": asdict(self.limits),
            "judgement": asdict(self.judgement),
            "cells": self.columns[LABEL].value_counts().to_dict(),
        }

    def __str__(self) -> str:
        """One line for people."""
        judged = self.judgement
        return (
            f"{len(self.columns):,} cells, {100 * self.unknown_share:.1f} % unknown; on {judged.test:,} held-out "
            f"reference cells macro-F1 {judged.macro_f1:.3f}, ECE {judged.calibrated.expected_error:.3f}, "
            f"{100 * judged.kept:.1f} % kept"
        )


@numba_print()
def annotate_query(
    query: Source,
    reference: Source,
    model: str | Path | LoadedModel,
    config: AnnotateConfig,
    *,
    layer: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> QueryResult:
    """Label cells by a probe of all labelled cells of the reference.

    Args:
        query: raw counts of new cells.
        reference: labelled raw counts.
        model: model directory, or a model in memory.
        config: ``label``, ``features`` and what else is asked for.
        layer: matrix of both to read; by default the first with whole counts.
        device: "auto" takes a GPU where there is one.
        progress: called with (label, done, total).

    Raises:
        DataError, ModelError: see the layers.
        TaskError: labels that cannot be learnt, cells without counts in the model's genes, or features that the model
            lacks.
    """
    started = time.monotonic()
    embedder = open_model(model, device=device)
    check_features(embedder, config.features)
    lacking = no_expression(embedder)
    labelled = read_labelled(reference, config, layer=layer)
    cells = read_counts(query, layer=layer)
    genes = variable_genes(labelled.cells, embedder, config.target, progress)
    vectors = vectors_of(
        labelled.cells, embedder, genes, config.target, label="reference: ", progress=progress
    )
    few_shot = few_shot_scores(labelled, vectors, config) if config.features == "auto" else {}
    kind = max(few_shot, key=lambda name: few_shot[name]) if few_shot else config.features
    judgement = judge(labelled, vectors, kind, config, progress)
    annotator = Annotator(vectors, labelled.class_C, len(labelled.classes), kind, config)
    called = annotator(vectors_of(cells, embedder, genes, config.target, label="query: ", progress=progress))
    return QueryResult(
        config,
        labelled.source,
        str(cells.uns["source"]),
        dict(zip(labelled.classes, np.bincount(labelled.class_C).tolist(), strict=True)),
        (*labelled.left_out, str(lacking)) if lacking else labelled.left_out,
        kind,
        few_shot,
        annotator.temperature,
        annotator.limits,
        judgement,
        _columns(called, labelled.classes, cells.obs_names),
        model_facts(embedder.loaded),
        str(embedder.device),
        time.monotonic() - started,
    )


def _columns(called: Called, classes: tuple[str, ...], cells: pd.Index) -> pd.DataFrame:
    likeliest = names_of(called, classes)
    label = np.where(called.unknown_C, NO_CLASS, likeliest)
    labels = list(dict.fromkeys([*classes, NO_CLASS]))
    return pd.DataFrame(
        {
            LABEL: pd.Categorical(label, categories=labels),
            LIKELIEST: pd.Categorical(likeliest, categories=list(classes)),
            CONFIDENCE: called.confidence_C.astype(np.float32),
            UNKNOWN: called.unknown_C,
        },
        index=cells,
    )
