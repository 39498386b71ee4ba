"""Jobs on a real head with token authentication: what travels, logs, exit codes, stop and Ctrl-C."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cellfoundry.cluster.bundle import MAX_INPUT_BYTES

from .conftest import COMMAND_WITHIN_S, ENTRYPOINT, FOLLOW, TOKEN, Head, own_lines, send

# Shell lines, for what no short command of ours does. They are sent at once: a job takes seconds to start.
SHELL_JOBS = {
    "fails-7": "echo to stdout; echo to stderr >&2; exit 7",
    "killed": "kill -9 $$",
    "detached": "echo working; exec sleep 600",
    "stopped": "trap 'echo saving; exit 0' TERM; echo working; while :; do sleep 0.2; done",
}


@pytest.fixture(scope="module")
def shell_jobs(head: Head) -> Head:
    """The head with ``SHELL_JOBS`` sent to it."""
    send(head, SHELL_JOBS)
    return head


@contextmanager
def following(head: Head, job: str, terminal: bool) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A ``submit --follow`` that watches ``job``, once its log has come, and the user's end of its terminal."""
    user, program = os.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", FOLLOW, job],
            env=head.environment,
            stdin=program if terminal else subprocess.DEVNULL,
            stderr=program,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                assert any("working" in line for line in process.stdout if ENTRYPOINT not in line)
                yield process, user
            finally:
                process.kill()
    finally:
        os.close(user)
        os.close(program)


def test_an_ingest_takes_its_small_file_along_and_its_log_comes_back(head: Head, tmp_path: Path) -> None:
    from cellfoundry_data.store import open_store
    from cellfoundry_data.vocabulary import Vocabulary

    genes = Vocabulary.named("scfoundation").genes[:5]
    rows = [f"cell{row},{row + 1},0,2,3,{row}" for row in range(40)]
    (tmp_path / "cells.csv").write_text("\n".join([f"cell,{','.join(genes)}", *rows, ""]))
    command = ["data", "ingest", "cells.csv", "--store", f"{tmp_path}/store", "--min-genes", "1"]
    ran = head.cellfoundry("submit", "--follow", "--", *command, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "40 cells x 19,264 genes" in ran.stdout
    assert TOKEN not in ran.stdout + ran.stderr
    manifest = open_store(tmp_path / "store").manifest
    assert manifest["cells"] == 40
    assert manifest["sources"][0]["path"].endswith("/inputs/0/cells.csv")


def test_a_command_that_fails_there_fails_here(head: Head, tmp_path: Path) -> None:
    (tmp_path / "no_store").mkdir()
    (tmp_path / "no_store" / "file").touch()
    sent = head.cellfoundry("submit", "--name", "mine", "--", "data", "info", "no_store", cwd=tmp_path)
    job = sent.stdout.strip()
    assert (sent.returncode, job.rpartition("-")[0]) == (0, "mine")
    watched = head.cellfoundry("jobs", "logs", job, "--follow")
    assert watched.returncode == 2
    assert watched.stdout.count("error: inputs/0/no_store is not a CellFoundry store") == 1
    listed = head.cellfoundry("jobs", "list").stdout.splitlines()
    assert [line.split()[:2] for line in listed if line.startswith("mine")] == [[job, "FAILED"]]
    assert any(line.endswith("  data info no_store") for line in listed)


def test_exit_code_and_both_streams_of_a_job(shell_jobs: Head) -> None:
    watched = shell_jobs.cellfoundry("jobs", "logs", "fails-7", "--follow")
    assert watched.returncode == 7
    assert own_lines(watched.stdout) == ["to stdout", "to stderr"]
    tail = shell_jobs.cellfoundry("jobs", "logs", "fails-7", "--tail", "1").stdout
    assert tail.splitlines() == watched.stdout.splitlines()[-1:]
    assert shell_jobs.cellfoundry("jobs", "logs", "killed", "--follow").returncode == 137
    assert "exit code  137" in shell_jobs.cellfoundry("jobs", "status", "killed").stdout


def test_ctrl_c_without_a_terminal_detaches_and_the_job_goes_on(shell_jobs: Head) -> None:
    with following(shell_jobs, "detached", terminal=False) as (process, user):
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=COMMAND_WITHIN_S) == 130
        said = os.read(user, 4096).decode()
    assert "detached goes on" in said
    assert "`cellfoundry jobs stop detached` stops it" in said
    assert "status     RUNNING" in shell_jobs.cellfoundry("jobs", "status", "detached").stdout
    stopped = shell_jobs.cellfoundry("jobs", "stop", "detached")
    assert (stopped.returncode, stopped.stdout.splitlines()[-1]) == (0, "detached: STOPPED")
    assert shell_jobs.cellfoundry("jobs", "stop", "detached").stdout == "detached: STOPPED\n"


def test_ctrl_c_on_a_terminal_asks_and_stops_the_job_which_may_save(shell_jobs: Head) -> None:
    with following(shell_jobs, "stopped", terminal=True) as (process, user):
        process.send_signal(signal.SIGINT)
        said = ""
        while "go on [w]atching? " not in said:
            assert select.select([user], [], [], COMMAND_WITHIN_S)[0], said
            said += os.read(user, 4096).decode()
        os.write(user, b"s\n")
        assert process.stdout is not None
        log = process.stdout.read()
        assert process.wait(timeout=COMMAND_WITHIN_S) == 143
    assert own_lines(log)[-1:] == ["saving"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["data", "inform"], ["No such command 'inform'"]),
        (["data", "ingest", "--store", "/s"], ["Missing argument"]),
        (["data", "ingest", "large.h5ad", "--store", "/s"], ["large.h5ad has 100 MB", "give a URL"]),
        (["data", "ingest", "s3://b/x.h5ad", "--store", "atlas"], ["--store atlas", "absolute path"]),
    ],
)
def test_nothing_is_sent_of_a_command_that_cannot_work(
    command: list[str], words: list[str], tmp_path: Path
) -> None:
    with (tmp_path / "large.h5ad").open("wb") as file:
        file.truncate(MAX_INPUT_BYTES + 1)
    nobody = Head("http://127.0.0.1:1", {**os.environ, "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"})
    ran = nobody.cellfoundry("submit", "--", *command, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Traceback" not in ran.stderr
    assert "nothing answers" not in ran.stderr
    for word in words:
        assert word in ran.stderr


def test_pretraining_places_its_own_gpus(tmp_path: Path) -> None:
    command = ["train", "pretrain", "--config", "tiny", "--store", "/s", "--run", "/r"]
    ran = Head("", dict(os.environ)).cellfoundry("submit", "--num-gpus", "2", "--", *command)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "leave out --num-gpus" in ran.stderr


def test_a_name_that_begins_with_a_sign_is_refused() -> None:
    ran = Head("", dict(os.environ)).cellfoundry("submit", "--name=.mine", "--", "data", "info", "/s")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "begin with a letter or digit" in ran.stderr
