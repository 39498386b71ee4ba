"""The step on several ranks: the loss does not know how many there are, and a broken step is skipped by all."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "programs" / "worlds.py"


@pytest.fixture(scope="module")
def worlds(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What rank 0 of each world reported, by the name of the work and the number of ranks."""
    folder = tmp_path_factory.mktemp("worlds")
    command = [sys.executable, str(PROGRAM), str(store), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=85, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


@pytest.mark.parametrize(("work", "ranks"), [("losses", 2), ("losses", 4), ("sampled_losses", 2)])
def test_the_loss_does_not_know_the_number_of_ranks(worlds: dict[str, Any], work: str, ranks: int) -> None:
    alone = worlds[f"{work}_1"]
    assert len(set(alone["losses"])) == 5
    shared = worlds[f"{work}_{ranks}"]
    assert shared["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for name in ("cells", "tokens", "flops"):
        assert shared["last"][name] == alone["last"][name] > 0


def test_a_sampled_decoder_trains_on_other_estimates_with_less_work(worlds: dict[str, Any]) -> None:
    full, sampled = worlds["losses_1"], worlds["sampled_losses_1"]
    assert sampled["losses"] != full["losses"]
    assert sampled["losses"] == pytest.approx(full["losses"], rel=0.05)
    assert sampled["last"]["flops"] < full["last"]["flops"]


def test_phases_of_a_step_are_timed(worlds: dict[str, Any]) -> None:
    assert set(worlds["losses_2"]["phases"]) == {
        *("data", "mask", "forward", "backward", "optimizer", "communication")
    }
    assert all(spent > 0 for spent in worlds["losses_2"]["phases"].values())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_that_is_not_finite_is_skipped_by_all_ranks(
    worlds: dict[str, Any], precision: str, stage: int
) -> None:
    report = worlds["skips_2"][f"{precision}, stage {stage}"]
    assert report["applied"] == [True, False, False, True]
    assert [math.isfinite(loss) for loss in report["losses"]] == [True, False, True, True]
    assert [math.isfinite(norm) for norm in report["norms"]] == [True, False, False, True]
    assert report["changed"] == [False, False, True]
    assert report["finite"]
    by_loss, by_gradient = report["records"]
    assert by_loss["skipped"] == "loss nan"
    assert by_gradient["skipped"].startswith("gradient norm ")
    # Of a broken loss only the micro-batch is named that has it; of a broken gradient all four.
    rows = report["rows"]
    assert by_loss["cell_rows"] == sorted(rows[1][1][1])
    assert by_gradient["cell_rows"] == sorted(row for rank in rows for micro in rank[2] for row in micro)
