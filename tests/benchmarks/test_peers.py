"""Peers: found, driven and measured as they should be, and a clear reason wherever that cannot be done."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cellfoundry_bench.atlas import settings
from cellfoundry_bench.atlas.cache import VARIABLE
from cellfoundry_bench.atlas.reading import check_content
from cellfoundry_bench.atlas.settings import Settings
from cellfoundry_bench.errors import BenchError
from cellfoundry_bench.peers import driven, environments
from cellfoundry_bench.peers.driven import Driven, alternate
from cellfoundry_bench.peers.environments import PEERS, NotMeasured, Peer, environment, find_python
from cellfoundry_bench.peers.processes import PROC, ProcessTree

DRIVER = """
import sys
sys.path.insert(0, {drivers!r})
from protocol import System, serve

class Numbers(System):
    def prepare(self, sources, out):
        print("to the log, not to the answers")
        open(out, "w").write(sources[0])
    def open(self, path, batch_cells):
        self.size = batch_cells
    def epoch(self):
        return [range(self.size)] * 3
    def cells(self, batch):
        sum(range(200_000))
        return len(batch)
    def content(self, batch):
        return len(batch), 2 * len(batch), 0.5

serve(Numbers())
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "drive_numbers.py"
    path.write_text(DRIVER.format(drivers=str(driven.OURS.parent)))
    return path


def numbers(script: Path) -> Driven:
    return Driven("numbers", sys.executable, script, script.with_suffix(".log"))


def test_commands_are_answered_and_printing_goes_to_the_log(script: Path, tmp_path: Path) -> None:
    with numbers(script) as system:
        prepared = system.do("prepare", sources=["a"], out=str(tmp_path / "out"))
        assert prepared["peak_bytes"] > 2**20
        assert system.do("open", path="", batch_cells=4)["wall_s"] >= 0
        read = system.do("read", cells=10)
        assert read["cells"] == 12
        assert read["cpu_s"] > 0
        assert system.do("content") == {"cells": 12, "nnz": 24, "molecules": 1.5}
    assert (tmp_path / "out").read_text() == "a"
    assert "to the log" in script.with_suffix(".log").read_text()


def test_an_error_is_a_reason_and_the_process_goes_on(script: Path) -> None:
    with numbers(script) as system:
        with pytest.raises(NotMeasured, match="numbers raised TypeError when asked to open"):
            system.do("open", nonsense=1)
        assert system.do("ready")["peak_bytes"] > 0
    broken = script.with_name("broken.py")
    broken.write_text("raise SystemExit(1)")
    with numbers(broken) as system, pytest.raises(NotMeasured, match="ended while asked to open"):
        system.do("open")


def test_turns_alternate_and_count_cpu_per_cell(script: Path) -> None:
    with numbers(script) as ours, numbers(script) as peer:
        ours.do("open", path="", batch_cells=4)
        peer.do("open", path="", batch_cells=1)
        timed, ours_says, peer_says = alternate(ours, peer, 40, 10, rounds=2)
    assert [len(side) for side in (timed.ours, timed.peer, ours_says, peer_says)] == [2, 2, 2, 2]
    assert timed.ratio > 1  # the same work a batch, and four times the cells in each


def test_an_epoch_that_is_not_the_source_is_no_measurement(script: Path) -> None:
    with numbers(script) as system:
        check_content({"cells": 1, "nnz": 2}, {"cells": 1, "nnz": 2}, system)
        with pytest.raises(NotMeasured, match="numbers handed out 3 nnz in an epoch; the source has 2"):
            check_content({"cells": 1, "nnz": 3}, {"cells": 1, "nnz": 2}, system)


def test_python_is_found_by_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = "{}.{}".format(*sys.version_info)
    assert find_python((here,)) == Path(sys.executable)
    shim = tmp_path / "python9.9"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(environments.PYTHONS_VARIABLE, str(shim))
    with pytest.raises(NotMeasured, match=r"needs Python 9\.9, and none was found; name one in"):
        find_python(("9.9",))


def test_an_environment_that_cannot_be_made_is_a_reason_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an interpreter that says its version and cannot make environments."""
    python = tmp_path / "python9.9"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && echo 9.9\n')
    python.chmod(0o755)
    (tmp_path / "odd.txt").write_text("odd==1\n")
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    monkeypatch.setenv(environments.PYTHONS_VARIABLE, str(python))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    with pytest.raises(NotMeasured, match="the environment of Odd 1 could not be made; its log lies in"):
        environment(Peer("Odd 1", "odd", ("9.9",)))
    assert not list((tmp_path / "cache").rglob("complete"))


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.key)
def test_every_peer_is_pinned_and_has_a_driver(peer: Peer) -> None:
    lines = (environments.REQUIREMENTS / f"{peer.key}.txt").read_text().split()
    assert lines
    assert all(line.count("==") == 1 and "/" not in line and "@" not in line for line in lines)
    assert peer.driver.is_file()


@pytest.mark.skipif(not PROC.exists(), reason="reads /proc")
def test_a_process_tree_counts_children_and_their_memory() -> None:
    grown = "x = bytearray(300_000_000); t = __import__('time').process_time\nwhile t() < 1: pass"
    code = f"import subprocess, sys; input(); subprocess.run([sys.executable, '-c', {grown!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    with ProcessTree(process.pid) as tree:
        process.stdin.write("\n")
        process.stdin.close()
        deadline = time.monotonic() + 25
        while process.poll() is None and time.monotonic() < deadline:
            process.poll()
    assert process.returncode == 0
    usage = tree.usage()
    assert len(usage["driver"]) == 1
    assert sum(one.cpu_s for one in usage["daemon"]) > 0.5
    assert max(one.peak_bytes for one in usage["daemon"]) > 300_000_000


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (settings.CELLS_VARIABLE, "many", "is 'many'; give a number of cells from 1000"),
        (settings.CELLS_VARIABLE, "5", "is '5'; give a number of cells"),
        (
            settings.PEERS_VARIABLE,
            "annbatch,arrow",
            "names 'arrow'; give all, none or some of annbatch, scdataset",
        ),
        (settings.REAL_VARIABLE, "/nowhere", "which is no folder"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(BenchError, match=message):
        Settings.from_environment()


def test_settings_choose_peers_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.from_environment().peers == PEERS
    monkeypatch.setenv(settings.PEERS_VARIABLE, "none")
    assert Settings.from_environment().peers == ()
    monkeypatch.setenv(settings.PEERS_VARIABLE, "soma,annbatch")
    assert [peer.key for peer in Settings.from_environment().peers] == ["soma", "annbatch"]
