"""All result files of a folder on one self-contained page: plots, tables, machine and command of each."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from cellfoundry_bench.atomic import write_text
from cellfoundry_bench.errors import BenchError

REQUIRED = ("name", "summary", "command", "date", "commit", "versions", "machine", "wall_s", "rows", "curves")


def write_report(results_dir: Path | str, out_html: Path | str) -> Path:
    """Draw every ``*.json`` under ``results_dir`` into ``out_html`` (returned), newest folder first.

    Raises:
        BenchError: the folder is missing or holds no result, or a file in it is no result.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from cellfoundry_bench.figures import line_chart, ratio_chart

    results, out = Path(results_dir), Path(out_html)
    if not results.is_dir():
        raise BenchError(
            f"{results} is not a folder; give the folder that `cellfoundry bench run --out` wrote"
        )
    files = sorted(results.rglob("*.json"))
    if not files:
        raise BenchError(f"{results} holds no result; run `cellfoundry bench run NAME --out {results}` first")
    records = [(path.parent.relative_to(results).as_posix(), _read(path)) for path in files]
    records.sort(key=lambda pair: pair[0], reverse=True)
    folders = [
        (results.name if folder == "." else folder, [record for _, record in group])
        for folder, group in groupby(records, key=lambda pair: pair[0])
    ]
    environment = Environment(
        loader=PackageLoader("cellfoundry_bench", ""), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        folders=folders, ratio_chart=ratio_chart, line_chart=line_chart, number=_number
    )
    return write_text(out, page)


def _read(path: Path) -> dict[str, Any]:
    """One result file; BenchError if it is not one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is not a readable JSON file; remove it or run its suite again") from error
    missing = [key for key in REQUIRED if not isinstance(record, dict) or key not in record]
    if missing:
        raise BenchError(
            f"{path} is not a benchmark result: it lacks {', '.join(missing)}; remove it from there"
        )
    return record


def _number(value: float | None) -> str:
    """Four significant digits with thousands separated; empty for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
