"""A node of three is lost in the middle of an ingest. For pretraining `kill_pretrain.py` does the same in minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from .conftest import COMMAND_WITHIN_S

SOAK = Path(__file__).resolve().parents[2] / "benchmarks" / "soak" / "lose_node.py"


def test_an_ingest_that_loses_a_node_writes_the_same_store() -> None:
    done = subprocess.run(
        [sys.executable, SOAK, "--losses", "1"],
        capture_output=True,
        text=True,
        timeout=2 * COMMAND_WITHIN_S,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["losses"], found["results_identical"]) == (1, 1)
    assert 0 < found["lost_after_share"][0] < 1
