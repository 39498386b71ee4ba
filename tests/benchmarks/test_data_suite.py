"""The whole data suite on few cells and without peers: every row is measured or says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellfoundry_bench.atlas.bench import bench
from cellfoundry_bench.atlas.cache import VARIABLE
from cellfoundry_bench.atlas.cells import synthetic_atlas
from cellfoundry_bench.atlas.settings import Settings
from cellfoundry_bench.results import Row
from cellfoundry_bench.suites.data import measure
from cellfoundry_data import vocabulary


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path_factory.mktemp("cache")))
        atlas = synthetic_atlas(1500, list(vocabulary.load("scfoundation").genes))
        small = Settings(cells=1500, peers=(), rounds=1, conversions=1, repeats=(3,))
        with bench(small, atlas) as made:
            result = measure(made)
            folder = made.folder
        assert not folder.exists()
    assert [curve.title for curve in result.curves]
    return {row.what: row for row in result.rows}


def test_what_needs_no_peer_is_measured(rows: dict[str, Row]) -> None:
    unmeasured = {what: row.note for what, row in rows.items() if row.value is None and row.peer is None}
    assert unmeasured == {}


def test_rows_of_peers_that_were_left_out_say_so(rows: dict[str, Row]) -> None:
    contests = [row for row in rows.values() if row.peer is not None and row.value is None]
    assert len(contests) == 10
    assert all(
        row.met == "not measured" and row.note.endswith("was left out of this run") for row in contests
    )


def test_sizes_and_batches_are_plausible(rows: dict[str, Row]) -> None:
    sizes = [rows[f"bytes per non-zero, {profile}, synthetic"].value for profile in ("compact", "fast")]
    assert all(size is not None and 0.8 < size < 3 for size in sizes)
    assert "an epoch adds up to the source" in rows["our batches, compact"].note
    assert "an epoch adds up to the source" in rows["our batches, token budget 262,144"].note
    fill = rows["token budget, share filled"].value
    assert fill is not None
    assert 0 < fill <= 1


def test_resuming_reads_no_more_late_than_early(rows: dict[str, Row]) -> None:
    assert rows["resume, chunks decoded, most over fewest points"].met is True


def test_notes_hold_no_paths(rows: dict[str, Row]) -> None:
    assert not [row.note for row in rows.values() if str(Path.home()) in row.note or "/tmp" in row.note]
