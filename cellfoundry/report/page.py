"""Fills the quickstart report's page from what the stages recorded."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from cellfoundry.report.figures import horizontal_bars, loss_curve, umap_scatter
from cellfoundry.report.template import render
from cellfoundry_bench.atomic import write_text

PACKAGES = (
    "cellfoundry",
    "torch",
    "ray",
    "deepspeed",
    "onnxruntime",
    "onnxruntime-gpu",
    "zarr",
    "anndata",
    "numpy",
    "scikit-learn",
    "umap-learn",
)
STAGE_NAMES = {
    "ingest": "ingest (Ray Data)",
    "pretrain": "pretrain (Ray Train + DeepSpeed)",
    "export": "export ONNX and check",
    "embed": "embed every cell",
    "serve": "endpoint and client",
    "evaluate": "linear probe, PCA, UMAP",
}


def _versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue  # one of the two onnxruntime distributions is never installed
    return ", ".join(found)


def _pretrain_sentence(pretrain: dict[str, Any]) -> str:
    ratio = pretrain["heldout_loss"] / pretrain["gene_mean_loss"]
    verdict = (
        f"{100 * (1 - ratio):.1f} % below" if ratio < 1 else f"NOT below ({100 * (ratio - 1):.1f} % above)"
    )
    return (
        f"{pretrain['steps']:,} optimizer steps on {pretrain['cells_seen']:,} cells (with repeats), "
        f"{pretrain['parameters']:,} parameters, {pretrain['workers']} workers: the held-out loss ends {verdict} "
        "the error of predicting each gene's mean."
    )


def _probe_sentence(evaluate: dict[str, Any]) -> str:
    gap = 100 * (evaluate["embedding"]["accuracy"] - evaluate["pca"]["accuracy"])
    if gap < 0:
        return (
            f"PCA-50 is ahead by {-gap:.1f} points. That is expected: this model is tiny and trained for about "
            "90 seconds on fewer than 2,000 cells. The quickstart shows that the road works, not what a model "
            "pretrained on an atlas reaches."
        )
    return (
        f"The embedding is ahead of PCA-50 by {gap:.1f} points here. Read little into it: a tiny model trained on "
        "the very donor it is tested on, without labels, on one split scheme."
    )


def write_page(out: Path, record: dict[str, Any], plots: dict[str, Any]) -> Path:
    """Write ``report.html`` into ``out``.

    Args:
        out: folder of the run.
        record: stage name -> what the stage recorded, ``seconds`` included.
        plots: ``steps`` and ``evaluations`` of the training log, ``umap`` (cells, 2), ``labels`` (cells,).
    """
    seconds = {name: record[name]["seconds"] for name in STAGE_NAMES}
    total = sum(seconds.values())
    html = render(
        "page.html.j2",
        ingest=record["ingest"],
        pretrain=record["pretrain"],
        evaluate=record["evaluate"],
        checks=[record["export"]["check"], record["serve"]["check"]],
        total_time=f"{total / 60:.1f}",
        pretrain_sentence=_pretrain_sentence(record["pretrain"]),
        probe_sentence=_probe_sentence(record["evaluate"]),
        loss_svg=loss_curve(plots["steps"], plots["evaluations"]),
        umap_svg=umap_scatter(plots["umap"], plots["labels"]),
        time_svg=horizontal_bars(list(STAGE_NAMES.values()), list(seconds.values()), "seconds"),
        facts=[
            ("Engine", record["embed"]["engine"]),
            (
                "Store",
                f"{record['ingest']['nnz']:,} non-zeros, {record['ingest']['bytes_per_nnz']:.2f} bytes each",
            ),
            ("Removed at QC", f"{record['ingest']['removed']:,} of {record['ingest']['read']:,} cells"),
            ("Machine", f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"),
            ("Python", platform.python_version()),
            ("Versions", _versions()),
        ],
    )
    return write_text(out / "report.html", html)
