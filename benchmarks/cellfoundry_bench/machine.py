"""The machine and the software that a result was measured on; never its host name, user or paths."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "cellfoundry",
    "torch",
    "triton",
    "numpy",
    "ray",
    "deepspeed",
    "zarr",
    "anndata",
    "onnxruntime",
    "onnxruntime-gpu",
    "uvicorn",
)


def cpu_model() -> str:
    """Marketing name of the processor, as the kernel gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if match:
            return match.group(1).strip()
    return platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """CPU, usable cores, memory in GiB, threads of torch, GPU and its driver (None without one)."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpu_driver": _gpu_driver() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def slug() -> str:
    """Name for a results folder: the GPU where there is one, else the CPU; ``intel-xeon-processor``."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_model()
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def versions() -> dict[str, str]:
    """Python's version and those of the installed packages that a result can depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Commit of the checkout this file is tracked in, ``+changes`` behind it if files differ; None elsewhere.

    Asking for the file itself matters: an installed package may lie inside somebody else's repository.
    """
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    head = _git(here.parent, "rev-parse", "HEAD")
    # Results that this run has just written are no change of what it measures.
    measured = ("--", ":/", ":(top,exclude)benchmarks/results")
    changes = _git(here.parent, "status", "--porcelain", "--untracked-files=no", *measured)
    return f"{head}+changes" if head and changes else head


def busy_cores(window_s: float = 1.0) -> float | None:
    """Cores that were busy on average over the next ``window_s`` seconds; None except on Linux.

    Called while this process waits, so it is what others use: a reader sees how shared the machine was.
    """
    before = _busy_seconds()
    time.sleep(window_s)
    after = _busy_seconds()
    return None if before is None or after is None else round((after - before) / window_s, 2)


def _busy_seconds() -> float | None:
    """CPU-seconds spent by everybody since boot: user, nice, system, irq, softirq and steal of /proc/stat."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command run in ``folder``; None if git is missing or says no."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _gpu_driver() -> str | None:
    """Version of the NVIDIA driver as nvidia-smi gives it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip()
