"""Committed results name no person's machine and agree with themselves."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
FILES = sorted(RESULTS.rglob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_result_is_repeatable_and_anonymous(path: Path) -> None:
    text = path.read_text()
    record = json.loads(text)
    assert record["name"] == path.stem
    assert record["command"].startswith("cellfoundry bench run ")
    assert not re.search(r'["\s=](/|~|[A-Z]:\\)\w', text), "an absolute path"
    assert socket.gethostname() not in re.findall(r"[\w.-]+", text)
    for row in record["rows"]:
        assert (row["value"] is None) == (row["met"] == "not measured")
        if row["ratio"] is not None and row["ratio_range"] is not None:
            assert row["ratio_range"][0] <= row["ratio"] <= row["ratio_range"][1]
