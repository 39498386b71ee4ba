"""Bytes per non-zero of whole stores, both profiles, synthetic and real cells."""

from __future__ import annotations

from functools import partial

from cellfoundry_bench.atlas.bench import PROFILES, SYNTHETIC, Bench, folder_bytes, rows_or_reason
from cellfoundry_bench.results import Row


def size_rows(bench: Bench) -> list[Row]:
    """One row a source and profile."""
    rows = []
    for name in bench.sources:
        for profile in PROFILES:
            bar = 1.05 if (name, profile) == (SYNTHETIC, "compact") else None
            row = Row(f"bytes per non-zero, {profile}, {name}", None, "bytes", bar=bar, bar_is="at most")
            rows += rows_or_reason(partial(_measured, bench, name, profile, row), row)
    return rows


def _measured(bench: Bench, name: str, profile: str, row: Row) -> list[Row]:
    manifest = bench.manifest(name, profile)
    cells, nnz = manifest["cells"], manifest["nnz"]
    note = f"{cells:,} cells, {nnz / cells:,.0f} non-zeros each; obs, index, genes and manifest included"
    size = folder_bytes(bench.store(name, profile)) / nnz
    return [Row(row.what, size, row.unit, bar=row.bar, bar_is=row.bar_is, note=note)]
