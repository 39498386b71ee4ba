"""``cellfoundry data`` on a store in a folder and behind a URL."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import pytest
from typer.testing import CliRunner

from cellfoundry.cli.data import app
from cellfoundry_data.errors import DataError

from .conftest import MakeStore, random_cells

run = CliRunner().invoke


@pytest.mark.parametrize("url", [False, True])
def test_a_store_is_shown_verified_reported_and_exported(
    url: bool, tmp_path: Path, make_store: MakeStore
) -> None:
    folder = make_store(tmp_path / "lot #1", random_cells(30, seed=1))
    store = f"file://{folder}" if url else str(folder)
    shown = run(app, ["info", store])
    assert json.loads(shown.stdout)["cells"] == 30
    assert "all as written" in run(app, ["verify", store]).stdout
    page = tmp_path / "page.html"
    assert run(app, ["report", store, "--out", str(page)]).exit_code == 0
    assert page.stat().st_size > 1000
    assert run(app, ["export", store, str(tmp_path / "cells.h5ad")]).exit_code == 0
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").n_obs == 30


def test_the_page_of_a_store_behind_a_url_needs_a_name(tmp_path: Path, make_store: MakeStore) -> None:
    folder = make_store(tmp_path / "store", random_cells(30, seed=1))
    refused = run(app, ["report", f"file://{folder}"])
    assert refused.exit_code == 2
    assert "behind a URL" in refused.output
    assert run(app, ["report", str(folder)]).exit_code == 0
    assert (folder / "report.html").is_file()


def test_damage_is_named_and_exits_with_2(tmp_path: Path, make_store: MakeStore) -> None:
    folder = make_store(tmp_path / "store", random_cells(30, seed=1))
    damaged = next(folder.glob("shards/*/count/c/0/0"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    result = run(app, ["verify", str(folder)])
    assert result.exit_code == 2
    assert f"shard {damaged.parts[-5]} of the store" in result.output
    out = tmp_path / "cells.h5ad"
    assert isinstance(run(app, ["export", str(folder), str(out)]).exception, DataError)
    assert sorted(tmp_path.iterdir()) == [folder]
