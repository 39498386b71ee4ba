"""The synthetic atlas is the same whatever makes it, looks like real cells, and its cache is whole or absent."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest

from cellfoundry_bench.atlas import cells as atlas_cells
from cellfoundry_bench.atlas.cache import VARIABLE, cached
from cellfoundry_bench.atlas.cells import alias_table, design, synthetic_atlas, synthetic_csr
from cellfoundry_bench.atlas.reading import content_of


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_cell_depends_on_seed_and_number_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = synthetic_csr(700, 500)
    monkeypatch.setattr(atlas_cells, "BLOCK_CELLS", 7)
    assert (synthetic_csr(700, 500) != whole).nnz == 0
    assert (synthetic_csr(700, 500, first=600, stop=650) != whole[600:650]).nnz == 0
    assert (synthetic_csr(600, 500) != whole[:600]).nnz == 0
    assert (synthetic_csr(700, 500, seed=1) != whole).nnz > 0


def test_alias_tables_give_back_the_distribution() -> None:
    shares = np.random.default_rng(0).dirichlet(np.full(50, 0.1))
    threshold, alias = alias_table(shares)
    kept = (threshold.astype(float) + 1) / 2**32
    found = kept / 50 + np.bincount(alias, (1 - kept) / 50, 50)
    np.testing.assert_allclose(found, shares, atol=1e-8)


def test_cells_add_up_to_the_molecules_that_were_drawn() -> None:
    counts = synthetic_csr(300, 1000)
    np.testing.assert_array_equal(counts.sum(axis=1).A1, design(300, 1000).molecules)
    assert counts.has_sorted_indices
    assert (counts.data >= 1).all()


def test_lengths_and_counts_are_like_real_ones() -> None:
    counts = synthetic_csr(3000, 19_264)
    lengths = np.diff(counts.indptr)
    assert 1450 < lengths.mean() < 1750
    assert 650 < lengths.std() < 900
    assert 0.60 < (counts.data == 1).mean() < 0.66
    assert 0.14 < (counts.data == 2).mean() < 0.18
    assert 0.0002 < (counts.data > 255).mean() < 0.0005


def test_files_hold_runs_of_types_and_their_own_facts(cache: Path) -> None:
    genes = [f"gene{number}" for number in range(300)]
    atlas = synthetic_atlas(1200, genes)
    parts = [anndata.read_h5ad(path) for path in atlas.files]
    assert [part.n_obs for part in parts] == [600, 600]
    assert parts[0].X.data.dtype == np.float32
    assert parts[0].X.indices.dtype == np.int32
    assert list(parts[0].var_names) == genes
    assert (parts[0].obs["cell_type"].iloc[:500].nunique(), parts[1].obs["donor"].nunique()) == (1, 4)
    content = content_of(atlas.files)
    assert content == {"cells": atlas.cells, "nnz": atlas.nnz, "molecules": atlas.molecules}
    first = content_of(atlas.files[:1], 10)
    assert first == {"cells": 10, "nnz": parts[0].X[:10].nnz, "molecules": parts[0].X[:10].sum()}
    assert synthetic_atlas(1200, genes) == atlas


def test_what_could_not_be_made_is_not_cached(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cached("thing", fail)
    assert list(cache.iterdir()) == []
    assert (cached("thing", lambda folder: (folder / "whole").touch()) / "whole").exists()
