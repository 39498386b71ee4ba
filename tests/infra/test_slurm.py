"""The batch script, run by bash with stand-ins for Slurm, Ray and cellfoundry: it brings up Ray on every node behind a
token, resumes exactly when Slurm restarted it, and passes signals and exit codes on.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .conftest import stand_ins

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "slurm" / "cellfoundry.sbatch"
Parse = Callable[[Sequence[str]], dict[str, Any]]
NOTE = 'echo "$(basename "$0") $*" >> "$CALLS"'
UNTIL_TERM = "trap 'exit 143' TERM; while :; do sleep 0.05 & wait $!; done"
# The script's wait for one node, then for all: what starts them in the background has been called by then.
UNTIL_JOINED = '[[ $3 == 1 ]] && by=ray || by=srun; until grep -q "^$by " "$CALLS"; do sleep 0.05; done'
PRETRAIN = ["train", "pretrain", "--config", "3m", "--store", "/store"]
WAIT_S = 60


class Allocation:
    """An allocation of ``nodes``, and what its stand-ins were called with."""

    def __init__(self, folder: Path, nodes: int = 3, command: str = ":") -> None:
        self._calls = folder / "calls"
        self._calls.touch()
        hosts = "\\n".join(f"node{number}" for number in range(nodes))
        show = f"[[ $1 == show ]] && printf '{hosts}\\n'"
        path = stand_ins(
            folder,
            scontrol=f"{NOTE}; {show} || true",
            srun=f"{NOTE}; {UNTIL_TERM}",
            ray=f"{NOTE}; {UNTIL_TERM}",
            python=f"{NOTE}; cat > /dev/null; {UNTIL_JOINED}",
            cellfoundry=f"{NOTE}; echo token=${{#RAY_AUTH_TOKEN}} $RAY_AUTH_MODE $RAY_ADDRESS; {command}",
        )
        self.environment = {
            **path,
            "CALLS": str(self._calls),
            "SLURM_JOB_NODELIST": f"node[0-{nodes - 1}]",
            "SLURM_JOB_ID": "77",
            "SLURM_CPUS_PER_TASK": "16",
        }

    def calls(self, program: str) -> list[str]:
        """Arguments of each call, in order."""
        lines = self._calls.read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == program]

    @contextmanager
    def script(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """The script while it runs."""
        with subprocess.Popen(
            ["bash", SCRIPT, *arguments],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Exit code and both streams of the script."""
        with self.script(*arguments, **environment) as process:
            output, errors = process.communicate(timeout=WAIT_S)
            return process.returncode, output, errors


def test_bash_accepts_it() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def test_without_a_command_it_says_what_it_lacks(tmp_path: Path) -> None:
    code, _, errors = Allocation(tmp_path).run()
    assert code == 2
    assert errors.startswith("error: give a cellfoundry command")


def test_ray_spans_the_allocation_behind_a_token(tmp_path: Path) -> None:
    allocation = Allocation(tmp_path)
    code, output, errors = allocation.run("data", "ingest", "a b.h5ad", "--store", "/s")
    assert (code, errors) == (0, "")
    assert output == "token=64 token node0:6379\n"
    (head,) = allocation.calls("ray")
    assert {"start", "--head", "--block", "--num-cpus=16"} <= set(head.split())
    (others,) = allocation.calls("srun")
    assert {"--nodes=2", "--ntasks=2", "--exclude=node0", "--address=node0:6379", "--block"} <= set(
        others.split()
    )
    assert allocation.calls("python") == ["- node0:6379 1 600", "- node0:6379 3 600"]
    assert allocation.calls("cellfoundry") == ["data ingest a b.h5ad --store /s"]


def test_one_node_needs_no_srun(tmp_path: Path) -> None:
    allocation = Allocation(tmp_path, nodes=1)
    assert allocation.run("data", "info", "/s")[0] == 0
    assert allocation.calls("srun") == []


def test_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    allocation = Allocation(tmp_path, command="exit 7")
    assert allocation.run("data", "info", "/s")[0] == 7
    assert allocation.calls("scontrol") == ["show hostnames node[0-2]"]


@pytest.mark.parametrize(
    ("restarts", "has_config", "resumes"), [(0, True, False), (1, True, True), (1, False, False)]
)
@pytest.mark.parametrize("equals", [False, True])
def test_it_resumes_a_restarted_run(
    restarts: int, has_config: bool, resumes: bool, equals: bool, parse: Parse, tmp_path: Path
) -> None:
    allocation = Allocation(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    if has_config:
        (run / "config.yaml").touch()
    named = [f"--run={run}"] if equals else ["--run", str(run)]
    assert allocation.run(*PRETRAIN, *named, SLURM_RESTART_COUNT=str(restarts))[0] == 0
    (arguments,) = allocation.calls("cellfoundry")
    parameters = parse(arguments.split())
    assert parameters["resume"] is resumes
    assert parameters["run"] == run


def test_other_commands_are_repeated_as_they_are(tmp_path: Path) -> None:
    allocation = Allocation(tmp_path)
    assert allocation.run("data", "ingest", "/a.h5ad", "--store", "/s", SLURM_RESTART_COUNT="2")[0] == 0
    assert allocation.calls("cellfoundry") == ["data ingest /a.h5ad --store /s"]


@pytest.mark.parametrize(
    ("number", "requeued"),
    [(signal.SIGUSR1, ["requeue 77"]), (signal.SIGTERM, [])],
    ids=["USR1", "TERM"],
)
def test_both_signals_let_the_command_save_and_only_usr1_requeues(
    number: signal.Signals, requeued: list[str], tmp_path: Path
) -> None:
    saves = "trap 'echo saved; exit 143' TERM; echo running; while :; do sleep 0.05 & wait $!; done"
    allocation = Allocation(tmp_path, command=saves)
    with allocation.script(*PRETRAIN, "--run", "/r") as process:
        assert process.stdout is not None
        assert any(line == "running\n" for line in process.stdout)
        process.send_signal(number)
        assert process.stdout.read() == "saved\n"
        assert process.wait(timeout=WAIT_S) == 143
    assert allocation.calls("scontrol")[1:] == requeued


def test_a_requeue_that_slurm_refuses_changes_no_exit_code(tmp_path: Path) -> None:
    """As where a preemption has requeued the job already."""
    allocation = Allocation(tmp_path, command=f"kill -USR1 $PPID; {UNTIL_TERM}")
    stand_ins(tmp_path, scontrol=f"{NOTE}; [[ $1 == show ]] && echo node0")
    assert allocation.run(*PRETRAIN, "--run", "/r")[0] == 143
    assert allocation.calls("scontrol")[1:] == ["requeue 77"]


def wait_for_nodes(address: str, count: int, within_s: float) -> subprocess.CompletedProcess[str]:
    """The script's own Python, for real."""
    (code,) = re.findall(r"<<'PYTHON'\n(.*?)\nPYTHON\n", SCRIPT.read_text(), re.DOTALL)
    return subprocess.run(
        [sys.executable, "-", address, str(count), str(within_s)],
        input=code,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_it_waits_until_all_nodes_have_joined(ray_local: None) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    assert wait_for_nodes(address, 1, 200).returncode == 0
    fewer = wait_for_nodes(address, 2, 0.1)
    assert fewer.returncode == 1
    assert fewer.stderr.endswith(
        f"error: 1 of 2 Ray nodes joined {address} within 0.1 s: see srun's log above\n"
    )
