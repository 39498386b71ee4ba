"""What a read-depth enhancement was made of, and all of its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from cellfoundry_bench.tasks.page import MORE_CELLS
from cellfoundry_tasks.enhance.cluster_level import SMOOTHING_K
from cellfoundry_tasks.enhance.peers import POSTERIOR_SAMPLES
from cellfoundry_tasks.enhance.run import Enhanced
from cellfoundry_tasks.enhance.smoothing import K_GRID


def record(result: Enhanced) -> dict[str, Any]:
    """All numbers, for ``result.json``."""
    return {
        "task": "enhance",
        "config": result.config.model_dump(mode="json"),
        "source": result.source,
        "cells": result.cells,
        "genes": result.genes,
        "judged": result.judged,
        "model": result.model,
        "embedding_model": result.embedding_model,
        "gene_level": [
            {
                "depth": depth,
                "method": method,
                "scores": {key: dataclasses.asdict(score) for key, score in tally.scores().items()},
            }
            for depth in result.config.depths
            for method, tally in result.gene_level.methods(depth).items()
        ],
        "empty_cells": [
            {"depth": depth, "seed": seed, "cells": cells}
            for (depth, seed), cells in result.gene_level.empty.items()
        ],
        "cluster_level": [
            {
                "method": method,
                "fold": fold,
                "clusters": [
                    dataclasses.asdict(number) for number in result.cluster_level.numbers[method, fold]
                ],
                "scores": {
                    key: dataclasses.asdict(value)
                    for key, value in result.cluster_level.scores(method, fold).items()
                },
            }
            for method, fold in result.cluster_level.values
        ],
        "reference": {
            "origin": result.cluster_level.origin,
            "clusters": result.cluster_level.reference_clusters,
            "cells": result.cluster_level.cells,
        },
        "seconds": result.seconds,
    }


def facts(result: Enhanced, command: str) -> list[tuple[str, str]]:
    """(name, value) of cells, model, peers, seeds and the command."""
    config = result.config
    judged = (
        f"{result.judged:,} of those that obs column {config.heldout_column!r} marks"
        if config.heldout_column
        else f"{result.judged:,} of all"
    )
    found = [
        (
            "Cells",
            f"{result.source}: {result.cells:,} cells, {result.genes:,} genes shared with the model, "
            f"median of {result.median_counts:,.0f} counts",
        ),
        (
            "Judged at the gene level",
            f"{judged}; neighbours, MAGIC and scVI have all cells, thinned, of the data set",
        ),
        (
            "Seen in pretraining",
            f"told by obs column {config.heldout_column!r}: judged cells were held out"
            if config.heldout_column
            else "not told (--heldout-column): the model may have been pretrained on the judged cells at full depth",
        ),
        ("Model", _listed(result.model)),
    ]
    if result.embedding_model != result.model:
        found.append(("Embeddings by", _listed(result.embedding_model)))
    found += [
        (
            "Asked of the model",
            "T = log10(counts shown / depth), S = log10(counts shown), as in pretraining; no value below 0",
        ),
        (
            "Thinning",
            f"binomial, seeds 0 to {config.seeds - 1} at {', '.join(f'{100 * depth:g} %' for depth in config.depths)}",
        ),
        (
            "kNN smoothing",
            f"nearest in 50 principal components of the thinned cells, k in {', '.join(map(str, K_GRID))}; "
            f"{SMOOTHING_K} for clusters",
        ),
        ("MAGIC", "its defaults, on the square root of counts per 10,000"),
        (
            "scVI",
            f"its defaults, but {config.scvi_epochs} epochs (400 by default here), half of them warm-up; first "
            f"thinning; expression is the mean of {POSTERIOR_SAMPLES} posterior samples"
            if config.scvi_epochs
            else "left out",
        ),
        (
            "Random weights",
            "the same architecture, seed 0, first thinning"
            + (
                "; their gene vectors are random too, where the model's were components of its training cells"
                if result.model.get("gene_start") == "components"
                else ""
            ),
        ),
        MORE_CELLS,
        ("Seconds", f"{result.seconds:,.0f}"),
    ]
    if command:
        found.append(("Command", command))
    return found


def _listed(model: Mapping[str, Any]) -> str:
    """Facts of a model, name and value, with commas between them."""
    said = []
    for name, value in model.items():
        shown = (
            f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value
        )
        said.append(f"{name.replace('_', ' ')} {shown}")
    return ", ".join(said)
