"""The whole road on a few hundred real cells: every stage real, training shortened to a few steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import anndata
import numpy as np
import pytest

from cellfoundry.quickstart import quickstart

CELLS = 120
SHORT = ["max_steps=3", "eval_cells=8", "eval_every_steps=2"]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, baron_h5ad: Path, ray_local: None
) -> tuple[Path, list[tuple[str, int, int]]]:
    """Folder of a finished run, and the progress it reported."""
    folder = tmp_path_factory.mktemp("quickstart")
    donor = anndata.read_h5ad(baron_h5ad)
    rows = np.sort(np.random.default_rng(0).choice(donor.n_obs, CELLS, replace=False))
    donor[rows].copy().write_h5ad(folder / "donor.h5ad")
    seen: list[tuple[str, int, int]] = []
    quickstart(
        folder / "out",
        donor=folder / "donor.h5ad",
        overrides=SHORT,
        progress=lambda *call: seen.append(call),
    )
    return folder, seen


def test_every_cell_is_embedded_beside_its_obs(finished: tuple[Path, list[tuple[str, int, int]]]) -> None:
    folder, _ = finished
    embedded = anndata.read_h5ad(folder / "out" / "baron_embedded.h5ad")
    donor = anndata.read_h5ad(folder / "donor.h5ad")
    assert embedded.obs["cell_type"].tolist() == donor.obs["cell_type"].tolist()
    assert embedded.obsm["X_cellfoundry"].shape[0] == CELLS
    assert np.isfinite(embedded.obsm["X_cellfoundry"]).all()


def test_endpoint_and_export_agree_with_the_batch_path(
    finished: tuple[Path, list[tuple[str, int, int]]],
) -> None:
    record = json.loads((finished[0] / "out" / "quickstart.json").read_text())["stages"]
    assert record["serve"]["check"]["error"] <= 1e-4
    assert record["export"]["check"]["error"] <= 1e-4


def test_report_is_one_file_with_the_numbers_of_the_run(
    finished: tuple[Path, list[tuple[str, int, int]]],
) -> None:
    folder, _ = finished
    html = (folder / "out" / "report.html").read_text()
    record = json.loads((folder / "out" / "quickstart.json").read_text())["stages"]
    assert html.count("<svg") == 3
    assert not re.search(r'(?:src|href)="(?!#)', html), "nothing may be loaded from elsewhere"
    assert f"{record['pretrain']['heldout_loss']:.4f}" in html
    assert f"{100 * record['evaluate']['embedding']['accuracy']:.1f}" in html
    assert "prefers-color-scheme: dark" in html


def test_each_stage_reports_progress_to_its_end(
    finished: tuple[Path, list[tuple[str, int, int]]],
) -> None:
    last = {label: (done, total) for label, done, total in finished[1]}
    assert {"read cells", "write shards", "embed", "endpoint", "evaluate"} <= set(last)
    assert all(done == total for done, total in last.values()), last


def test_second_run_keeps_finished_stages(finished: tuple[Path, list[tuple[str, int, int]]]) -> None:
    folder, _ = finished
    model = folder / "out" / "run" / "model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    seen: list[str] = []
    quickstart(
        folder / "out",
        donor=folder / "donor.h5ad",
        overrides=SHORT,
        progress=lambda label, done, total: seen.append(label),
    )
    assert seen == []
    assert model.stat().st_mtime_ns == before
