"""The whole road on the bundled donor: ingest, pretrain, export, embed, serve, report.

Every stage runs through the same functions as its command. What a stage recorded is kept in ``quickstart.json``, so a
second run skips finished stages and an interrupted one goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellfoundry_bench.atomic import write_text

if TYPE_CHECKING:
    from cellfoundry_training.config import PretrainConfig

Progress = Callable[[str, int, int], None]

STAGES = ("ingest", "pretrain", "export", "embed", "serve", "evaluate")
PRESET = "tiny"
WORKERS = 2
ENDPOINT_CELLS = 256
# float32 through another engine or a batch of other cells: the project's bar for "the same cell".
SAME_CELL_BAR = 1e-4


class _Run:
    """Folder of one quickstart and the record of its finished stages."""

    def __init__(self, out: Path, donor: Path | None, config: PretrainConfig, fresh: bool) -> None:
        self.out = out
        self.donor = donor
        self.config = config
        self.source = out / "baron_pancreas_h1.h5ad"
        self.store = out / "store"
        self.run = out / "run"
        self.model = self.run / "model"
        self.onnx = out / "onnx"
        self.embedded = out / "baron_embedded.h5ad"
        self._record_file = out / "quickstart.json"
        self.record: dict[str, Any] = {}
        self._key = _key(donor, config)
        if self._record_file.is_file() and not fresh:
            kept = json.loads(self._record_file.read_text("utf-8"))
            self.record = kept["stages"] if kept.get("key") == self._key else {}

    def stage(self, name: str, work: Callable[[_Run, Progress], dict[str, Any]], progress: Progress) -> None:
        """Run ``work`` unless the stage is on record; record what it returns and its seconds, forget later stages."""
        if name in self.record:
            return
        kept = STAGES[: STAGES.index(name)]
        self.record = {stage: self.record[stage] for stage in kept}
        started = time.monotonic()
        self.record[name] = {**work(self, progress), "seconds": time.monotonic() - started}
        write_text(self._record_file, json.dumps({"key": self._key, "stages": self.record}, indent=2))


def _key(donor: Path | None, config: PretrainConfig) -> str:
    """Changes whenever the version, the donor or the preset does, so that stale stages are not kept."""
    from cellfoundry import __version__

    return hashlib.sha256(f"{__version__}\n{donor}\n{config.model_dump_json()}".encode()).hexdigest()


def _ingest(run: _Run, progress: Progress) -> dict[str, Any]:
    from cellfoundry_data.bundled import baron_h5ad
    from cellfoundry_data.ingest import ingest

    if run.donor is None:
        baron_h5ad(run.source)
    else:
        shutil.copyfile(run.donor, run.source)
    manifest = ingest([str(run.source)], str(run.store), progress=progress)
    read = sum(source["cells_read"] for source in manifest["sources"])
    return {
        "cells": manifest["cells"],
        "genes": manifest["genes"],
        "nnz": manifest["nnz"],
        "read": read,
        "removed": read - manifest["cells"],
        "bytes_per_nnz": manifest["array_bytes"] / manifest["nnz"],
    }


def _pretrain(run: _Run, progress: Progress) -> dict[str, Any]:
    from cellfoundry_training.pretrain import pretrain

    # A run without a record was cut off: it starts over, since 90 s of training is cheaper than a stale checkpoint.
    shutil.rmtree(run.run, ignore_errors=True)
    result = pretrain(run.config, run.store, run.run, progress=progress)
    return {
        "steps": result.steps,
        "cells_seen": result.cells_seen,
        "heldout_loss": result.heldout_loss,
        "gene_mean_loss": result.gene_mean_loss,
        "plain_gene_mean_loss": result.plain_gene_mean_loss,
        "parameters": result.parameters,
        "workers": run.config.workers,
    }


def _export(run: _Run, progress: Progress) -> dict[str, Any]:
    from cellfoundry_serving.export import export_model

    progress("export ONNX", 0, 1)
    # The export fails by itself where ONNX Runtime and torch disagree.
    [check] = export_model(run.model, run.onnx, "onnx", decoder=False).comparisons
    progress("export ONNX", 1, 1)
    return {
        "check": {
            "name": "ONNX Runtime against torch",
            "cells": check.cells,
            "error": check.max_error,
            "bar": SAME_CELL_BAR,
        }
    }


def _embed(run: _Run, progress: Progress) -> dict[str, Any]:
    from cellfoundry_serving.embed import embed

    summary = embed(run.source, run.model, run.embedded, progress=progress)
    return {"cells": summary.shape[0], "engine": summary.engine}


def _serve(run: _Run, progress: Progress) -> dict[str, Any]:
    import anndata

    from cellfoundry_serving.client import Client
    from cellfoundry_serving.endpoint.server import running
    from cellfoundry_serving.errors import ServingError

    embedded = anndata.read_h5ad(run.embedded)
    rows = np.sort(
        np.random.default_rng(0).choice(embedded.n_obs, min(ENDPOINT_CELLS, embedded.n_obs), replace=False)
    )
    progress("endpoint", 0, len(rows))
    with running(run.model) as url, Client(url) as client:
        served = client.embed(embedded[rows].copy())
    progress("endpoint", len(rows), len(rows))
    error = float(np.abs(served - embedded.obsm["X_cellfoundry"][rows]).max())
    if not error <= SAME_CELL_BAR:
        raise ServingError(
            f"The endpoint's embeddings differ from the batch path's by {error:.1e}, more than {SAME_CELL_BAR:.0e}; "
            "please report this with the versions in pip list."
        )
    return {
        "check": {
            "name": "endpoint through the client against the batch path",
            "cells": len(rows),
            "error": error,
            "bar": SAME_CELL_BAR,
        }
    }


def _evaluate(run: _Run, progress: Progress) -> dict[str, Any]:
    import anndata

    from cellfoundry.evaluation import common_types, linear_probe, pca_of_counts
    from cellfoundry_serving.umap_layout import umap_coordinates

    progress("evaluate", 0, 3)
    embedded = anndata.read_h5ad(run.embedded)
    labels = embedded.obs["cell_type"].to_numpy().astype(str)
    kept = common_types(labels)
    embedding = embedded.obsm["X_cellfoundry"]
    embedding_probe = linear_probe(embedding[kept], labels[kept])
    progress("evaluate", 1, 3)
    pca_probe = linear_probe(pca_of_counts(embedded.X[kept]), labels[kept])
    progress("evaluate", 2, 3)
    np.save(run.out / "umap.npy", umap_coordinates(embedding))
    progress("evaluate", 3, 3)
    return {
        "embedding": dataclasses.asdict(embedding_probe),
        "pca": dataclasses.asdict(pca_probe),
        "cells": int(kept.sum()),
        "types": len(np.unique(labels[kept])),
    }


def _report(run: _Run) -> Path:
    import anndata

    from cellfoundry.report.page import write_page

    log = [json.loads(line) for line in (run.run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return write_page(
        run.out,
        run.record,
        {
            "steps": [line for line in log if "loss" in line],
            "evaluations": [line for line in log if "heldout_loss" in line],
            "umap": np.load(run.out / "umap.npy", allow_pickle=False),
            "labels": anndata.read_h5ad(run.embedded, backed="r").obs["cell_type"].to_numpy().astype(str),
        },
    )


def quickstart(
    out: Path | str,
    *,
    donor: Path | None = None,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Run every stage that is not on record in ``out`` and write ``out/report.html``.

    Args:
        out: folder to make; holds the donor's h5ad, the store, the run with its model, the ONNX export, the
            embedded h5ad and the report.
        donor: h5ad of raw counts with obs column ``cell_type``; the bundled donor if None.
        overrides: ``key=value`` changes to the ``tiny`` preset.
        fresh: forget finished stages.
        progress: called as ``(label, done, total)``.

    Returns:
        Path of the report.
    """
    from cellfoundry_data.ray_cluster import ray_cluster
    from cellfoundry_training.config import load_config

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    show = progress or (lambda label, done, total: None)
    run = _Run(out, donor, load_config(PRESET, [f"workers={WORKERS}", *overrides]), fresh)
    with contextlib.ExitStack() as stack:
        if "pretrain" not in run.record:
            stack.enter_context(ray_cluster(WORKERS))  # one start, 5 to 8 s, for both stages that need it
        run.stage("ingest", _ingest, show)
        run.stage("pretrain", _pretrain, show)
    run.stage("export", _export, show)
    run.stage("embed", _embed, show)
    run.stage("serve", _serve, show)
    run.stage("evaluate", _evaluate, show)
    return _report(run)
