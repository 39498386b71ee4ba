"""The page that every task's report is: tiles, sections of plots and tables, and what ran."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cellfoundry_bench.atomic import write_text
from cellfoundry_tasks.facts import RESULT_FILE

REPORT_FILE = "report.html"
MORE_CELLS = (
    "What more cells would bring",
    "not in one run: give results of models that learned from fewer and from more cells to cellfoundry task scaling",
)
"""A row of what ran, for tasks that have such curves."""
PACKAGES = (
    *("cellfoundry", "torch", "scanpy", "scikit-learn", "scib-metrics", "harmonypy", "bbknn", "scanorama"),
    *("celltypist", "scvi-tools", "magic-impute", "peft", "numpy", "anndata"),
)


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        heading: what it shows.
        text: how to read it, and what it does not show.
        svgs: plots, from ``cellfoundry_bench.figures.svg``, which read in both themes.
        columns: heads of the table, none without one.
        rows: of the table; numbers as they should be read, text is escaped.
        strong: numbers of rows to stand out, the model's say.
    """

    heading: str
    text: str
    svgs: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    strong: frozenset[int] = frozenset()


def page(
    title: str,
    question: str,
    tiles: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    facts: Sequence[tuple[str, str]],
) -> str:
    """The page's text, which needs nothing from outside.

    Args:
        title: of the page.
        question: what the task asks, in a sentence or two.
        tiles: (value, what it is) of the few numbers that matter most.
        sections: from top to bottom.
        facts: (name, value): cells, model, its size and training, seeds, command.
    """
    environment = Environment(
        loader=PackageLoader("cellfoundry_bench", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("tasks/page.html.j2").render(
        title=title,
        question=question,
        tiles=tiles,
        sections=sections,
        facts=[*facts, ("Machine", _machine()), ("Versions", _versions())],
    )


def write_result(out: Path, record: Mapping[str, Any], text: str) -> None:
    """Write ``result.json`` and then ``report.html`` into the folder ``out``, each whole or not at all."""
    write_text(out / RESULT_FILE, json.dumps(record, indent=2, allow_nan=False) + "\n")
    write_text(out / REPORT_FILE, text)


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}"


def _versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue  # a task runs with those of the extra's libraries that it needs
    return ", ".join(found)
