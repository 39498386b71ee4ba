"""The near side of a driven system: its process, its commands, and two systems in turn."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellfoundry_bench.measure import Comparison
from cellfoundry_bench.peers.environments import NotMeasured, Peer, environment

OURS = Path(__file__).parent / "drivers" / "drive_cellfoundry.py"


class Driven:
    """A system in a process of its own that answers commands; a context manager that ends it.

    Args:
        name: of the system in rows.
        python: its interpreter.
        driver: its script.
        log: file that takes what the system prints.
    """

    def __init__(self, name: str, python: Path | str, driver: Path, log: Path) -> None:
        self.name = name
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [str(python), str(driver)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    @classmethod
    def ours(cls, log: Path) -> Driven:
        """CellFoundry, by this interpreter."""
        return cls("CellFoundry", sys.executable, OURS, log)

    @classmethod
    def peer(cls, peer: Peer, log: Path) -> Driven:
        """``peer`` in its environment; NotMeasured if that cannot be had."""
        return cls(peer.name, environment(peer), peer.driver, log)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def do(self, what: str, **settings: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; NotMeasured if it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **settings}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise NotMeasured(f"{self.name} ended while asked to {what}; its log lies in the cache folder")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NotMeasured(
                f"{self.name} raised {answer['error']} when asked to {what}; its log lies in the cache folder"
            )
        return answer

    def __enter__(self) -> Driven:
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._process.communicate(timeout=60)  # closes its standard input, which ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def alternate(
    ours: Driven, peer: Driven, ours_cells: int, peer_cells: int, rounds: int
) -> tuple[Comparison, list[dict[str, Any]], list[dict[str, Any]]]:
    """CPU-seconds a cell of both sides over ``rounds`` turns, after one uncounted turn each, and all answers."""
    answers: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for turn in range(rounds + 1):
        for side, system, cells in zip(answers, (ours, peer), (ours_cells, peer_cells), strict=True):
            answer = system.do("read", cells=cells)
            if turn:
                side.append(answer)
    per_cell = [[answer["cpu_s"] / answer["cells"] for answer in side] for side in answers]
    return Comparison(*per_cell), *answers


def touch_files(paths: Sequence[Path | str]) -> None:
    """Read all files under ``paths`` once, so that they lie in the page cache."""
    for path in map(Path, paths):
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    while opened.read(1 << 24):
                        pass
