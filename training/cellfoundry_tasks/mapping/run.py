"""A mapping from files to its result.

Legend: C cells, W width of an embedding.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from cellfoundry_model.embedder import Embedder
from cellfoundry_tasks.cells import Source
from cellfoundry_tasks.errors import TaskError
from cellfoundry_tasks.mapping.config import MapConfig
from cellfoundry_tasks.mapping.expression import Expression
from cellfoundry_tasks.mapping.integration import components
from cellfoundry_tasks.mapping.joint import Joint, drawn_rows, joint_batches, joint_reference
from cellfoundry_tasks.mapping.layout import umap
from cellfoundry_tasks.mapping.methods import COMPONENTS, FEATURES, PCA, Method, joined, methods
from cellfoundry_tasks.mapping.result import Layout, MapResult, MethodResult
from cellfoundry_tasks.mapping.scores import Judged, scores_of_coordinates, scores_of_graph
from cellfoundry_tasks.mapping.transfer import Floats, Graph, Place, carry, right_by_confidence, score
from cellfoundry_tasks.numba_print import numba_print
from cellfoundry_tasks.representation import (
    Progress,
    check_features,
    no_expression,
    open_model,
    random_twin,
    represent,
)


@numba_print()
def map_cells(
    model: str | Path,
    config: MapConfig,
    *,
    data: Source | None = None,
    reference: Source | None = None,
    query: Source | None = None,
    layer: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> MapResult:
    """Join the batches of ``data`` (obs column ``config.batch``), or a ``reference`` and a ``query``, in the model's
    space; carry labels over; compare with PCA, Harmony, Scanorama and random weights.

    Joining sees the cells of all batches but no labels; a label is only ever taken from other batches.

    Args:
        model: model directory.
        config: all settings.
        data: raw counts of several batches, or
        reference: labelled raw counts, and
        query: raw counts that take the labels; where they have some, these judge.
        layer: matrix to read; by default the first with whole counts.
        device: torch device; "auto" is CUDA where there is one.
        progress: called with (label, done, total).

    Raises:
        DataError, ModelError, TaskError: one sentence on what to mend.
    """
    embedder = open_model(model, device=device)
    check_features(embedder, config.features)
    joint = _joint(embedder, config, data, reference, query, layer)
    lacking = no_expression(embedder)
    told = progress or (lambda label, done, total: None)
    embedding = represent(joint.cells, embedder, target=config.target, label="embed", progress=progress)
    coordinates = components(embedding, COMPONENTS, config.seed)
    rows = drawn_rows(joint, config.compared_cells, config.seed)
    few = joint.rows(rows)
    expression = None if lacking else Expression(joint, rows, embedder, config, progress)
    twin = open_model(random_twin(model, config.seed), device=device)
    compared = list(
        methods(
            few,
            coordinates[rows],
            expression.drawn_DK if expression else None,
            _random(few, twin, config, progress),
            config.seed,
        )
    )
    places: dict[str, Place] = {}
    results = []
    for number, method in enumerate(compared):
        told("compare methods", number, len(compared))
        began = time.monotonic()
        places[method.name] = method.place()
        results.append(_judged(method, places, few, config, began))
    told("compare methods", len(compared), len(compared))

    obsm = {"X_cellfoundry": embedding}
    if expression and config.features == "expression":
        obsm["X_cellfoundry_expression"] = coordinates = expression.all_cells()
    chosen = joined(config.method, FEATURES[config.features], "model", coordinates, joint, config.seed)
    cells, confidence = _mapped(joint, obsm, chosen.place(), config)
    return MapResult(
        config=config,
        cells=cells,
        method=chosen.name,
        methods=tuple(results),
        drawn=rows,
        layouts=_layouts(places, chosen.name, config, told),
        confidence=confidence,
        sources=tuple(
            "AnnData" if isinstance(source, ad.AnnData) else Path(source).name
            for source in (data, reference, query)
            if source is not None
        ),
        n_genes=joint.cells.n_vars,
        left_out=(*joint.left_out, str(lacking)) if lacking else joint.left_out,
        two_files=joint.two_files,
        model=_model_facts(model, embedder),
    )


def _joint(
    embedder: Embedder,
    config: MapConfig,
    data: Source | None,
    reference: Source | None,
    query: Source | None,
    layer: str | None,
) -> Joint:
    shared: dict[str, Any] = {"label": config.label, "unlabelled": config.unlabelled, "layer": layer}
    if data is not None and reference is None and query is None and config.batch:
        return joint_batches(data, embedder.vocab_genes, batch=config.batch, **shared)
    if data is None and reference is not None and query is not None and not config.batch:
        return joint_reference(reference, query, embedder.vocab_genes, **shared)
    raise TaskError(
        "map: give either one file of several batches and the obs column that names them (data and batch), or a "
        "labelled file and one that takes its labels (reference and query)"
    )


def _random(few: Joint, twin: Embedder, config: MapConfig, progress: Progress | None) -> Floats:
    """Components of what random weights say, in the features that are joined."""
    said = represent(
        few.cells,
        twin,
        output="cell" if config.features == "embedding" else "expression",
        target=config.target,
        label=f"{config.features} of random weights",
        progress=progress,
    )
    return components(said, COMPONENTS, config.seed)


def _judged(
    method: Method, places: dict[str, Place], few: Joint, config: MapConfig, began: float
) -> MethodResult:
    place = places[method.name]
    judged = Judged(few.batch, few.label, np.asarray(places[PCA]))
    if isinstance(place, Graph):
        scores = scores_of_graph(place.neighbors, judged, config.seed)
    else:
        scores = scores_of_coordinates(place, judged, config.seed)
    transfer = None
    if few.query_is_labelled:
        carried = carry(place, few.batch, few.label, few.queries, config.neighbors)
        transfer = score(carried, few.batch, few.label, few.queries, config.seed)
    return MethodResult(method.name, method.kind, scores, transfer, time.monotonic() - began)


def _mapped(
    joint: Joint, obsm: dict[str, Floats], place: Place, config: MapConfig
) -> tuple[ad.AnnData, tuple[tuple[float, float, float], ...]]:
    """All cells with what the model (``obsm``) and the mapping say of them, and how right it is by confidence."""
    carried = carry(place, joint.batch, joint.label, joint.queries, config.neighbors)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(joint.batch),
            "label": pd.Categorical(joint.label),
            "transferred_label": pd.Categorical(carried.label),
            "transferred_confidence": carried.confidence,
        },
        index=joint.cells.obs_names,
    )
    if not isinstance(place, Graph):
        obsm = obsm | {"X_cellfoundry_harmony": place}
    confidence = right_by_confidence(carried, joint.label) if joint.query_is_labelled else ()
    return ad.AnnData(obs=obs, obsm=obsm), confidence


def _layouts(places: dict[str, Place], chosen: str, config: MapConfig, told: Progress) -> tuple[Layout, ...]:
    before = FEATURES[config.features]
    names, found = (PCA, before, chosen), []
    for number, name in enumerate(names):
        told("UMAP", number, len(names))
        place = places[name]
        if isinstance(place, Graph):
            found.append(Layout(name, umap(np.asarray(places[before]), config.seed, place.weights)))
        else:
            found.append(Layout(name, umap(place, config.seed)))
    told("UMAP", len(names), len(names))
    return tuple(found)


def _model_facts(model: str | Path, embedder: Embedder) -> dict[str, Any]:
    size = sum(weight.numel() for weight in embedder.loaded.model.parameters())
    return {"name": Path(model).resolve().name, "parameters": size, **embedder.loaded.info}
