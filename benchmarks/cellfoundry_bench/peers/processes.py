"""CPU and memory of a process and all it starts, sampled from /proc while it runs (Linux)."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROC = Path("/proc")
EVERY_S = 0.1


@dataclass(frozen=True)
class Usage:
    """CPU-seconds since watching began and largest resident memory in bytes."""

    cpu_s: float
    peak_bytes: int


class ProcessTree:
    """Watches ``pid`` and its descendants for the length of a ``with`` block.

    A process that ends between two samples takes up to a tenth of a second of its CPU time with it. Peaks are the
    kernel's own (VmHWM), so nothing is missed between samples as long as a process was seen once at its largest.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._stop = pid, threading.Event()
        self._first: dict[tuple[int, str], float] = {}
        self._seen: dict[tuple[int, str], tuple[str, float, int]] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProcessTree:
        self._sample()
        self._first = {key: cpu for key, (_, cpu, _) in self._seen.items()}
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._sample()
        self._stop.set()
        self._thread.join()

    def usage(self) -> dict[str, list[Usage]]:
        """Processes by kind: ``driver`` (the watched one), ``worker`` (of Ray), ``daemon`` (the others)."""
        by_kind = defaultdict(list)
        for key, (kind, cpu, peak) in self._seen.items():
            by_kind[kind].append(Usage(cpu - self._first.get(key, 0.0), peak))
        return dict(by_kind)

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._sample()

    def _sample(self) -> None:
        stats = {pid: stat for pid in _pids() if (stat := _stat(pid)) is not None}
        children = defaultdict(list)
        for pid, (parent, _, _) in stats.items():
            children[parent].append(pid)
        waiting = [self._pid]
        while waiting:
            pid = waiting.pop()
            waiting += children[pid]
            if pid not in stats:
                continue
            _, started, cpu = stats[pid]
            peak = _peak_bytes(pid)
            if peak:
                kind = "driver" if pid == self._pid else _kind(pid)
                self._seen[pid, started] = (kind, cpu, peak)


def _pids() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()] if PROC.exists() else []


def _stat(pid: int) -> tuple[int, str, float] | None:
    """Parent, start time and CPU-seconds."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The command's name stands in brackets and may itself hold brackets and spaces.
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[1]), fields[19], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_bytes(pid: int) -> int:
    try:
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _kind(pid: int) -> str:
    """By the name that Ray gives its workers; actors with an underscore and two agents are Ray's own."""
    try:
        arguments = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return "daemon"
    name, script = arguments[0], arguments[1] if len(arguments) > 1 else b""
    own = name.startswith((b"ray::_", b"ray::DashboardAgent", b"ray::RuntimeEnvAgent"))
    is_worker = name.startswith(b"ray::") or script.endswith(b"default_worker.py")
    return "worker" if is_worker and not own else "daemon"
