"""The batch script: bash accepts it, it says what it lacks, and it resumes exactly when Slurm restarted it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "slurm" / "pretrain.sbatch"
Parse = Callable[[Sequence[str]], dict[str, Any]]


def submit(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True, check=False)


def test_bash_accepts_it() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)


@pytest.mark.parametrize("missing", ["STORE", "RUN"])
def test_it_says_what_it_lacks(missing: str, echoing_path: dict[str, str]) -> None:
    given = {"STORE": "/store", "RUN": "/run"} | echoing_path
    del given[missing]
    done = submit(given)
    assert done.returncode != 0
    assert f"{missing}: is not set: give the" in done.stderr


@pytest.mark.parametrize(
    ("restarts", "has_config", "resumes"), [(0, True, False), (1, True, True), (1, False, False)]
)
def test_it_resumes_a_restarted_run(
    restarts: int, has_config: bool, resumes: bool, parse: Parse, echoing_path: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run with a space"
    run.mkdir()
    if has_config:
        (run / "config.yaml").touch()
    given = {"STORE": "/store", "RUN": str(run), "SLURM_RESTART_COUNT": str(restarts), "WORKERS": "3"}
    done = submit(given | echoing_path)
    assert done.returncode == 0, done.stderr
    parameters = parse(done.stdout.splitlines())
    assert parameters["resume"] is resumes
    assert parameters["run"] == run
    assert parameters["set_"] == ["workers=3"]


def test_its_settings_are_ones_the_config_has(echoing_path: dict[str, str], parse: Parse) -> None:
    from cellfoundry_training.config import load_config

    parameters = parse(submit({"STORE": "/s", "RUN": "/r"} | echoing_path).stdout.splitlines())
    assert load_config(parameters["config"], parameters["set_"]).workers == 4
