"""The report of a store: every number of its manifest, readable plots, and nothing from outside."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import anndata
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cellfoundry.report.data_report import SOURCES_DRAWN, write
from cellfoundry.report.qc_figures import barcode_ranks, distributions, knee_plot, median
from cellfoundry_bench.figures import shortened
from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest import ingest
from cellfoundry_data.qc import EDGES, FILTERS, CellQuality, QcHistograms, QcLimits
from cellfoundry_data.store import manifest as manifest_file
from cellfoundry_data.store import open_store
from cellfoundry_data.store.format import FileEntry
from cellfoundry_data.store.reader import read_frame

LIMITS = QcLimits(min_genes=200, max_mito_share=0.2, max_total=60_000)
MakeStore = Callable[..., Path]
Sources = list[tuple[dict[str, Any], QcHistograms]]


def few_cells() -> CellBatch:
    genes = np.tile(np.array([1, 5, 9], np.int32), 30)
    return CellBatch(np.arange(0, 91, 3), genes, np.ones(90, np.float32), np.arange(30))


def measured_source(
    number: int, *, name: str | None = None, mito: bool = True
) -> tuple[dict[str, Any], QcHistograms]:
    """A source as ingest reports it: droplets with cells, debris and empty ones, drawn at random."""
    rng = np.random.default_rng(number)
    cells, debris = int(rng.integers(300, 3000)), int(rng.integers(10, 3000))
    genes = np.concatenate([rng.lognormal(7.4, 0.5, cells), rng.lognormal(4.3, 0.6, debris)]).astype(np.int32)
    share = rng.beta(2, 30, cells + debris) * (1 + 3 * rng.random()) if mito else np.zeros(cells + debris)
    quality = CellQuality(
        genes, np.rint(genes * rng.uniform(1.5, 4, len(genes))), np.minimum(share, 1).astype(np.float32)
    )
    keep, removed = LIMITS.judge(quality)
    histograms = QcHistograms()
    histograms.add(quality, keep)
    entry = {
        "name": name or f"donor_{number:03d}.h5ad",
        "path": f"/data/donor_{number:03d}.h5ad",
        "format": "h5ad",
        "matrix": "X" if number % 2 else "layers/counts",
        "cells_read": len(genes),
        "removed": removed,
        "cells": int(keep.sum()),
        "duplicates": 1234 if number == 1 else 0,
        "nnz": int(genes[keep].sum()),
        "genes": 18_525 - number,
        "matched_columns": 18_530,
        "matched_by_alias": 894,
        "ambiguous_columns": 3,
        "duplicate_columns": 5 + number,
        "dropped_columns": 1600,
        "dropped_names": ["RP11-34P13.7", "<b>", "AL627309.1", "fourth"],
        "share_of_counts_kept": 0.713 if number == 2 else 0.98765,
    }
    return entry, histograms


@pytest.fixture
def reported(make_store: MakeStore, tmp_path: Path) -> Callable[[Sources], Path]:
    """Make a store whose manifest and histograms are those of ``sources``."""

    def make(sources: Sources) -> Path:
        store = Path(make_store(tmp_path / "atlas & co", few_cells()))
        content = dict(manifest_file.parse((store / "manifest.json").read_bytes(), store))
        del content["sha256"]
        tables = [histograms.to_table(entry["name"]) for entry, histograms in sources]
        pq.write_table(pa.concat_tables(tables), store / "qc.parquet")
        entries = [entry for entry, _ in sources]
        content |= {
            "sources": entries,
            "qc": LIMITS.model_dump(),
            "files": [*content["files"], asdict(FileEntry.of(store, store / "qc.parquet"))],
        }
        manifest_file.write(store, content)
        return store

    return make


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page.split("<body>")[1])))


def plots(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def labels(plot: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in plot.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("n_sources", [1, 5, 200])
def test_the_page_shows_every_source_and_needs_nothing_from_outside(
    n_sources: int, reported: Callable[[Sources], Path], tmp_path: Path
) -> None:
    sources = [measured_source(number) for number in range(n_sources)]
    out = write(reported(sources), tmp_path / "new" / "report.html")
    page = out.read_text()
    text = text_of(page)
    for entry, _ in sources:
        assert page.count(entry["name"]) >= 2
        assert f"{entry['cells_read']:,} {entry['cells']:,}" in text
        for name in FILTERS:
            assert not entry["removed"][name] or f" {entry['removed'][name]:,} " in text
        assert f"{entry['genes']:,} 894 {entry['duplicate_columns']} 1,600 3" in text
    kept, read = (sum(entry[key] for entry, _ in sources) for key in ("cells", "cells_read"))
    assert f"30 cells kept of {read:,} read ({100 * kept / read:.1f} %)" in text
    assert (f"all {n_sources} sources {read:,} {kept:,}" in text) == (n_sources > 1)
    assert "removed: few genes" in text
    assert "removed: few counts" not in text
    assert not re.search(r'(?:src|href)="(?!#)|@import|url\((?!#)', page)
    assert "prefers-color-scheme: dark" in page
    assert len(page) < 900_000
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]


def test_what_is_bad_is_marked_and_names_are_escaped(
    reported: Callable[[Sources], Path], tmp_path: Path
) -> None:
    sources = [measured_source(0, name="<script>.h5ad"), measured_source(2)]
    page = write(reported(sources), tmp_path / "report.html").read_text()
    assert 'class="number low">71.3&nbsp;%' in page
    assert "98.8&nbsp;%" in page
    assert "<script>" not in page
    assert "&lt;script&gt;.h5ad" in page
    assert "RP11-34P13.7, &lt;b&gt;, AL627309.1" in page
    assert "fourth" not in page
    assert "atlas &amp; co" in page


def test_many_sources_are_drawn_as_all_together_and_the_worst(
    reported: Callable[[Sources], Path], tmp_path: Path
) -> None:
    sources = [measured_source(number) for number in range(30)]
    page = write(reported(sources), tmp_path / "report.html").read_text()
    worst = sorted((entry["cells"] / entry["cells_read"], entry["name"]) for entry, _ in sources)
    for plot in plots(page):
        names = [label for label in labels(plot) if label.endswith(("h5ad", "sources"))]
        assert names == ["all 30 sources", *(name for _, name in worst[: SOURCES_DRAWN - 1])]
        assert "currentColor" in page
    assert "that kept the smallest share" in page
    cells_table, genes_table = page.split("</table>")[:2]
    assert re.findall(r"donor_\d+\.h5ad</td>", cells_table) == [f"{name}</td>" for _, name in worst]
    assert re.findall(r"donor_\d+\.h5ad</td>", genes_table)[0] == "donor_002.h5ad</td>"


def test_limits_are_drawn_and_said(reported: Callable[[Sources], Path], tmp_path: Path) -> None:
    page = write(reported([measured_source(3)]), tmp_path / "report.html").read_text()
    knee, violins = plots(page)
    assert "max_total" in labels(knee)
    assert {"counts a cell", "genes a cell", "mitochondrial share"} <= set(labels(violins))
    assert "min_genes 200, max_mito_share 0.2, max_total 60000" in text_of(page)


def test_sources_without_mitochondrial_genes_have_no_panel_for_them(
    reported: Callable[[Sources], Path], tmp_path: Path
) -> None:
    page = write(reported([measured_source(3, mito=False)]), tmp_path / "report.html").read_text()
    assert "mitochondrial share" not in labels(plots(page)[1])
    assert "No source has counts of mitochondrial genes" in page


def test_a_store_without_histograms_has_a_report_without_plots(make_store: MakeStore, tmp_path: Path) -> None:
    page = write(make_store(tmp_path / "store", few_cells()), tmp_path / "report.html").read_text()
    assert "<svg" not in page
    assert "30 cells" in text_of(page)


def test_a_store_of_real_cells_that_grew_by_an_append(
    baron_h5ad: Path, ray_local: None, tmp_path: Path
) -> None:
    donor = anndata.read_h5ad(baron_h5ad)
    for name, rows in {"first": slice(0, 400), "second": slice(200, 550)}.items():
        donor[rows].write_h5ad(tmp_path / f"{name}.h5ad")
        source = [str(tmp_path / f"{name}.h5ad")]
        ingest(source, tmp_path / "store", limits=QcLimits(min_genes=1500), append=name == "second")
    store = open_store(tmp_path / "store")
    second = store.manifest["sources"][1]
    obs = store.obs_frame()
    twice = ((obs["source"] == "second.h5ad") & (obs["source_row"] < 200)).sum()
    assert 0 < twice == second["duplicates"] == obs["duplicate"].sum()
    assert 0 < second["removed"]["min_genes"] == 350 - (obs["source"] == "second.h5ad").sum()
    text = text_of(write(tmp_path / "store", tmp_path / "report.html").read_text())
    assert f"second.h5ad 350 {second['cells']} " in text
    assert f" {second['removed']['min_genes']} {twice} " in text
    assert f"all 2 sources 750 {store.n_cells}" in text
    assert "first.h5ad h5ad, X 18,525 894" in text


def test_damaged_histograms_and_no_store(reported: Callable[[Sources], Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a CellFoundry store"):
        write(tmp_path, tmp_path / "report.html")
    store = reported([measured_source(1)])
    data = bytearray((store / "qc.parquet").read_bytes())
    data[50] ^= 1
    (store / "qc.parquet").write_bytes(data)
    assert read_frame(store)
    with pytest.raises(DataError, match=r"qc\.parquet"):
        write(store, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("totals", [[], [0.0], [0.0, 0.0, 1.0], [1e11], [0.25, 0.5]])
@pytest.mark.parametrize("keep", [True, False])
def test_sources_of_hardly_any_cells_are_drawn(totals: list[float], keep: bool) -> None:
    histograms = QcHistograms()
    genes = np.minimum(np.array(totals), 19_000).astype(np.int32)
    quality = CellQuality(genes, np.array(totals), np.zeros(len(totals), np.float32))
    histograms.add(quality, np.full(len(totals), keep))
    limits = {"min_genes": 0, "min_total": 0.0, "max_total": 10.0}
    for lines in ({"a": histograms}, {"a": histograms, "b": QcHistograms()}):
        assert ElementTree.fromstring(knee_plot(lines, limits)) is not None
        assert ElementTree.fromstring(distributions(lines, limits)) is not None


def test_ranks_follow_the_sorted_cells() -> None:
    totals = np.sort(np.rint(np.random.default_rng(0).lognormal(6, 2, 500)))[::-1]
    histograms = QcHistograms()
    zeros = np.zeros(500)
    histograms.add(CellQuality(zeros.astype(np.int32), totals, zeros.astype(np.float32)), zeros.astype(bool))
    ranks, counts = barcode_ranks(histograms.total_counts[0])
    assert ranks[0] == 1
    assert ranks[-1] == (totals >= 1).sum()
    assert (np.diff(ranks) >= 0).all()
    bin_width = 10 ** (1 / 40)
    ratio = counts / totals[ranks - 1]
    assert ratio.max() <= bin_width
    assert ratio.min() >= 1 / bin_width


@pytest.mark.parametrize("name", list(EDGES))
def test_median_of_binned_cells(name: str) -> None:
    values = (
        np.random.default_rng(1).lognormal(6, 1, 1001) if name != "mito_share" else np.linspace(0, 0.6, 1001)
    )
    histograms = QcHistograms()
    quality = CellQuality(values.astype(np.int32), values, np.minimum(values, 1).astype(np.float32))
    histograms.add(quality, np.ones(1001, bool))
    assert median(name, getattr(histograms, name)[1]) == pytest.approx(
        np.median(getattr(quality, name)), rel=0.04
    )
    assert median(name, np.zeros(len(EDGES[name]) - 1, np.int64)) is None


def test_long_labels_keep_both_ends() -> None:
    assert shortened("short.h5ad") == "short.h5ad"
    assert shortened("a" * 30 + "_donor1.h5ad") == "aaaaaaaaaaaaa…aa_donor1.h5ad"
