"""The report of a mapping, and its record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cellfoundry_bench.tasks.mapping_figures import lisi_bars, tradeoff, transfer_bars
from cellfoundry_bench.tasks.page import Section, page
from cellfoundry_bench.umap_figure import umap_panels

if TYPE_CHECKING:
    from cellfoundry_tasks.intervals import Interval
    from cellfoundry_tasks.mapping.result import MapResult, MethodResult

BASELINE = "PCA + Harmony"
QUESTION = (
    "Do cells of the same kind come together, whichever batch they are from, and can labels be carried from one "
    "batch to another? The model is asked for the same depth T for all cells, so that batches of different depth "
    "should need less correction."
)
DIFFERS = (
    "Data and weights are others than in the published mapping (organoid to in vivo retina, the model of 100 million "
    "parameters, BBKNN on embeddings at T = 4.5, cLISI .994 and iLISI .965, raw 1.000 and .785), so nothing here "
    "reproduces it."
)
MEANS = ("Bio conservation", "Batch correction", "Total")


def report(result: MapResult, command: str = "") -> str:
    """The page of a mapping; ``command`` is shown where it was run by one."""
    mine, other = result.of(result.method), result.of(BASELINE)
    sections = [
        _transfer_section(result),
        _tradeoff_section(result),
        _lisi_section(result),
        _umap_section(result),
        _table_section(result),
        _confidence_section(result),
    ]
    return page(
        "Mapping cells across batches",
        f"{QUESTION} {verdict(mine, other)}",
        _tiles(mine, other),
        [section for section in sections if section],
        _facts(result, command),
    )


def record(result: MapResult) -> dict[str, Any]:
    """What ``result.json`` holds."""
    return {
        "task": "map",
        "config": result.config.model_dump(),
        "sources": list(result.sources),
        "cells": result.cells.n_obs,
        "compared_cells": len(result.drawn),
        "genes": result.n_genes,
        "batches": {str(k): int(v) for k, v in result.cells.obs["batch"].value_counts().items()},
        "left_out": list(result.left_out),
        "model": dict(result.model),
        "method": result.method,
        "methods": [
            {
                "name": method.name,
                "kind": method.kind,
                "seconds": round(method.seconds, 2),
                "scores": {name: _finite(value) for name, value in method.scores.items()},
                "transfer": _transfer_record(method),
            }
            for method in result.methods
        ],
        "right_by_confidence": [list(row) for row in result.confidence],
    }


def verdict(mine: MethodResult, other: MethodResult) -> str:
    """How the method that carried the labels compares with the usual road, in a sentence."""
    parts = []
    if mine.transfer and other.transfer:
        parts.append(_difference("accuracy", mine.transfer.accuracy.mean, other.transfer.accuracy.mean))
        parts.append(_difference("macro-F1", mine.transfer.macro_f1.mean, other.transfer.macro_f1.mean))
    for name in ("Total", "cLISI", "iLISI"):
        if name in mine.scores and name in other.scores:
            shown = "scib-metrics' total" if name == "Total" else name
            parts.append(_difference(shown, mine.scores[name], other.scores[name]))
    return f"Here, {mine.name} against {other.name}: {', '.join(parts)}."


def _difference(name: str, mine: float, other: float) -> str:
    change = mine - other
    word = (
        "the same in" if abs(change) < 5e-4 else f"{abs(change):.3f} {'better' if change > 0 else 'worse'} in"
    )
    return f"{word} {name} ({mine:.3f} and {other:.3f})"


def _tiles(mine: MethodResult, other: MethodResult) -> list[tuple[str, str]]:
    tiles = []
    if mine.transfer and other.transfer:
        for method in (mine, other):
            assert method.transfer
            found = method.transfer.macro_f1
            tiles.append(
                (f"{found.mean:.3f}", f"macro-F1 of carried labels, {method.name}; {_ranged(found)}")
            )
    for method in (mine, other):
        text = " / ".join(
            f"{method.scores[name]:.3f}" for name in ("cLISI", "iLISI") if name in method.scores
        )
        tiles.append((text, f"{'cLISI / ' if 'cLISI' in method.scores else ''}iLISI, {method.name}"))
    return tiles


def _transfer_section(result: MapResult) -> Section | None:
    judged = [method for method in result.methods if method.transfer]
    if not judged:
        return None
    first = judged[0].transfer
    assert first is not None
    names = [name for name, _, _, _ in first.batches]
    way = "each batch is left out in turn and takes" if not result.two_files else "the query takes"
    over = (
        f"lines are 95 % intervals over {len(names)} left-out batches (Student's t), which share reference cells, so "
        "that they are somewhat too narrow"
        if first.over == "left-out batches"
        else "lines are 95 % intervals over resampled query cells, and say nothing of other batches"
    )
    rows = [
        [
            method.name,
            _ranged(method.transfer.accuracy),
            _ranged(method.transfer.macro_f1),
            *(f"{f1:.3f}" for _, _, _, f1 in method.transfer.batches),
        ]
        for method in judged
        if method.transfer
    ]
    return Section(
        "Carried labels",
        f"Labels: {way} the label that most of the {result.config.neighbors} nearest labelled cells of other batches "
        f"have (with BBKNN: those that its graph joins it with); {over}. Joining sees all cells but no "
        "labels. The last columns are macro-F1 by query batch.",
        svgs=[transfer_bars(judged)],
        columns=["method", "accuracy", "macro-F1", *names],
        rows=rows,
        strong=_strong(judged, result.method),
    )


def _tradeoff_section(result: MapResult) -> Section | None:
    plot = tradeoff(result.methods)
    if not plot:
        return None
    return Section(
        "Kinds kept apart, batches mixed",
        "Means of scib-metrics' bio conservation and batch correction metrics; up and right is better. Batches that "
        "are not mixed at all can have high bio conservation. A BBKNN graph has no coordinates and so no means.",
        svgs=[plot],
    )


def _lisi_section(result: MapResult) -> Section:
    return Section(
        "cLISI and iLISI",
        "Median over cells of the effective number of labels (cLISI, turned so that 1 is one label) and batches "
        "(iLISI, 1 is all of them in equal parts) among 90 neighbours. iLISI counts every batch alike, so it stays "
        "below 1 where batches differ in size or kinds of cells. BBKNN gives every cell as many neighbours in every "
        "batch; LISI weighs them by distance, so that batches that lie apart still show.",
        svgs=[lisi_bars(result.methods)],
    )


def _umap_section(result: MapResult) -> Section:
    drawn = result.cells.obs.iloc[result.drawn]
    places = {layout.name: layout.xy for layout in result.layouts}
    return Section(
        "UMAP before and after",
        f"Before: PCA of the counts, and the model's {result.config.features} as it is. After: {result.method}. A "
        "UMAP shows neighbourhoods; distances between groups in it mean little.",
        svgs=[
            umap_panels(places, drawn["batch"].to_numpy(dtype=str), "batch"),
            umap_panels(places, drawn["label"].to_numpy(dtype=str), "label"),
        ],
    )


def _table_section(result: MapResult) -> Section:
    fullest = max(result.methods, key=lambda method: len(method.scores))
    columns = [name for name in MEANS if name in fullest.scores]
    columns += [name for name in fullest.scores if name not in columns]
    rows = [
        [method.name, *(_number(method.scores.get(column)) for column in columns)]
        for method in result.methods
    ]
    drawn = (
        ""
        if len(result.drawn) == result.cells.n_obs
        else f" Computed on {len(result.drawn):,} cells, drawn by batch and seed, of {result.cells.n_obs:,}."
    )
    return Section(
        "All scores",
        "scib-metrics' metrics as they are, 1 is best; the total is 0.6 bio conservation + 0.4 batch correction. PCR "
        "comparison is against PCA of the counts, so that PCA itself has 0." + drawn,
        columns=["method", *columns],
        rows=rows,
        strong=_strong(result.methods, result.method),
    )


def _confidence_section(result: MapResult) -> Section | None:
    if not result.confidence:
        return None
    return Section(
        "How far to trust a carried label",
        f"Confidence is the share of votes that the label had, by {result.method}, over all judged cells. The shares "
        "right hold for these cells: a query with kinds of cells that the reference lacks gets wrong labels with high "
        "confidence.",
        columns=["confidence at least", "share of cells", "right"],
        rows=[[f"{bound:g}", f"{share:.1%}", f"{right:.1%}"] for bound, share, right in result.confidence],
    )


def _facts(result: MapResult, command: str) -> list[tuple[str, str]]:
    counts = result.cells.obs["batch"].value_counts()
    labels = sorted(set(result.cells.obs["label"].astype(str)) - {""})
    info = dict(result.model)
    head = f"{info.pop('name')}, {info.pop('parameters'):,} parameters"
    facts = [
        ("Cells", f"{result.cells.n_obs:,} of {', '.join(result.sources)}; {result.n_genes:,} shared genes"),
        ("Batches", ", ".join(f"{name} {number:,}" for name, number in counts.items())),
        ("Labels", f"{result.config.label}: {', '.join(labels)}"),
        ("Left out", "; ".join(result.left_out) or "none"),
        ("Model", head),
        ("Of its making", ", ".join(f"{key} {value}" for key, value in info.items()) or "not known"),
        (
            "Joined",
            f"first components of the model's {result.config.features}; labels are carried by {result.method}; random "
            f"weights stand beside it by their {result.config.features}",
        ),
        ("Depth asked", f"target {result.config.target}, the same for all cells"),
        (
            "Seed",
            f"{result.config.seed} (drawn cells, PCA, Harmony, Scanorama, random weights: one of each); intervals are "
            "over batches or cells, not seeds",
        ),
        ("Published", DIFFERS),
    ]
    return [*facts, ("Command", command)] if command else facts


def _transfer_record(method: MethodResult) -> dict[str, Any] | None:
    if not method.transfer:
        return None
    found = method.transfer
    return {
        "over": found.over,
        "accuracy": [found.accuracy.mean, found.accuracy.low, found.accuracy.high],
        "macro_f1": [found.macro_f1.mean, found.macro_f1.low, found.macro_f1.high],
        "batches": [
            dict(zip(("batch", "cells", "accuracy", "macro_f1"), row, strict=True)) for row in found.batches
        ],
    }


def _strong(methods: Sequence[MethodResult], name: str) -> frozenset[int]:
    return frozenset(place for place, method in enumerate(methods) if method.name == name)


def _ranged(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.mean:.3f}"
    return f"{found.mean:.3f} ({max(found.low, 0):.3f} to {min(found.high, 1):.3f})"


def _number(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.3f}"


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
