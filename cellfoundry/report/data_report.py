"""The report of a store: what became of each source's genes and cells, as one HTML file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cellfoundry.report.qc_figures import distributions, knee_plot, median
from cellfoundry.report.template import render
from cellfoundry_bench.atomic import write_text
from cellfoundry_data.qc import FILTERS, QcHistograms
from cellfoundry_data.store.format import is_qc_file
from cellfoundry_data.store.reader import Frame, read_frame

SOURCES_DRAWN = 7
"""Sources that plots show one by one; of more, the aggregate and the worst."""

FILTER_NAMES = {
    "without_counts": "no counts",
    "min_genes": "few genes",
    "min_total": "few counts",
    "max_total": "many counts",
    "max_mito_share": "mito share",
}


def write(store: str | Path, out: str | Path) -> Path:
    """Write the report of ``store`` to the file ``out``, which needs nothing from outside.

    Raises:
        DataError: there is no store at ``store``, or its manifest, index or histograms are damaged.
    """
    frame = read_frame(store)
    sources = frame.manifest["sources"]
    histograms = _histograms(frame)
    limits = {name: value for name, value in frame.manifest["qc"].items() if value is not None}
    drawn = _drawn(sources, histograms)
    filters = [name for name in FILTERS if any(source["removed"][name] for source in sources)]
    rows = [_row(source, histograms.get(source["name"])) for source in sources]
    by_cells, by_counts = rows, rows
    if many := len(sources) > SOURCES_DRAWN:
        by_cells = sorted(rows, key=_kept_shares)
        by_counts = sorted(rows, key=lambda row: row["share_of_counts_kept"])
    html = render(
        "data.html.j2",
        name=Path(frame.path).resolve().name,
        manifest=frame.manifest,
        tiles=_tiles(frame, sources),
        facts=_facts(frame, limits),
        filters={name: FILTER_NAMES[name] for name in filters},
        by_cells=by_cells,
        by_counts=by_counts,
        total=_row(_total(sources), _merged(histograms.values())) if len(sources) > 1 else None,
        many=many,
        drawn=len(drawn) - 1,
        knee_svg=knee_plot(drawn, limits) if drawn else "",
        violins_svg=distributions(drawn, limits) if drawn else "",
        with_mito=any(each.mito_share[0, 1:].any() for each in histograms.values()),
    )
    return write_text(Path(out), html)


def _histograms(frame: Frame) -> dict[str, QcHistograms]:
    """Histograms by the name of the source, of all ingests; empty for a store that was written without them."""
    tables = [
        pq.read_table(pa.BufferReader(frame.read(entry.path)))
        for entry in frame.entries
        if is_qc_file(entry.path)
    ]
    return QcHistograms.from_table(pa.concat_tables(tables)) if tables else {}


def _drawn(sources: list[dict[str, Any]], histograms: dict[str, QcHistograms]) -> dict[str, QcHistograms]:
    """What plots show, by label: all sources together, if there are several, then each or the worst of them."""
    known = [source for source in sources if source["name"] in histograms]
    chosen = known if len(known) <= SOURCES_DRAWN else sorted(known, key=_kept_shares)[: SOURCES_DRAWN - 1]
    drawn = {source["name"]: histograms[source["name"]] for source in chosen}
    if len(known) == 1:
        return drawn
    together = {f"all {len(known):,} sources": _merged(histograms[source["name"]] for source in known)}
    return together | drawn if known else {}


def _kept_shares(source: dict[str, Any]) -> tuple[float, float]:
    """Shares of cells and of counts that are kept: the sources with the smallest are the worst."""
    return source["cells"] / max(source["cells_read"], 1), source["share_of_counts_kept"]


def _merged(histograms: Iterable[QcHistograms]) -> QcHistograms:
    together = QcHistograms()
    for each in histograms:
        together.merge(each)
    return together


def _total(sources: list[dict[str, Any]]) -> dict[str, Any]:
    """The sources' numbers added up; what does not add up is left out."""
    sums = {key: sum(source[key] for source in sources) for key in ("cells_read", "cells", "duplicates")}
    removed = {name: sum(source["removed"][name] for source in sources) for name in FILTERS}
    return sums | {"name": f"all {len(sources):,} sources", "removed": removed}


def _row(source: dict[str, Any], histograms: QcHistograms | None) -> dict[str, Any]:
    """A line of the table of sources."""
    medians = {
        f"median_{name}": median(name, getattr(histograms, name)[1]) if histograms else None
        for name in ("total_counts", "n_genes", "mito_share")
    }
    return source | medians | {"share_kept": source["cells"] / max(source["cells_read"], 1)}


def _tiles(frame: Frame, sources: list[dict[str, Any]]) -> list[tuple[str, str]]:
    manifest = frame.manifest
    total = _total(sources)
    read, duplicates = total["cells_read"], total["duplicates"]
    of_read = f"cells kept of {read:,} read ({_percent(total['cells'] / read)})" if read else "cells"
    n_bytes, per_nnz = _bytes(frame), manifest["array_bytes"] / max(manifest["nnz"], 1)
    return [
        (f"{manifest['cells']:,}", of_read),
        (
            f"{manifest['genes']:,}",
            f"genes; {manifest['nnz'] / max(manifest['cells'], 1):,.0f} with counts a cell",
        ),
        (
            _size(n_bytes),
            f"in {manifest['shards']:,} shards; {per_nnz:.2f} bytes a non-zero",
        ),
        (f"{duplicates:,}", "cells flagged as duplicates of an earlier one"),
    ]


def _facts(frame: Frame, limits: dict[str, float]) -> list[tuple[str, str]]:
    manifest = frame.manifest
    return [
        ("Non-zeros", f"{manifest['nnz']:,}"),
        ("Values", manifest["values"]),
        ("Profile", f"{manifest['profile']} (codec {manifest['codec']['name']})"),
        ("Limits", ", ".join(f"{name} {value:g}" for name, value in limits.items()) or "none"),
        ("Seed of the shuffle", str(manifest["seed"])),
        ("Vocabulary", f"{manifest['genes']:,} genes, SHA-256 {manifest['vocabulary']['hash']}"),
        ("Format", f"{manifest['format']} {manifest['version']}"),
    ]


def _bytes(frame: Frame) -> int:
    """Bytes of all files but the manifest."""
    index = frame.index
    shards = sum(entry.size for shard in range(len(index.names)) for entry in index.entry(shard).files)
    return shards + sum(entry.size for entry in frame.entries)


def _size(n_bytes: int) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if n_bytes >= size:
            return f"{n_bytes / size:,.1f} {unit}"
    return f"{n_bytes / 1e3:,.0f} kB"


def _percent(share: float) -> str:
    """One digit, and never 100 % of what is not all."""
    return "100\N{NO-BREAK SPACE}%" if share == 1 else f"{min(100 * share, 99.9):.1f}\N{NO-BREAK SPACE}%"
