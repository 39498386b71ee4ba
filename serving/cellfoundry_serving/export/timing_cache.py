"""TensorRT's timing cache: what builds measured of its kernels, kept so that the next build is faster."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from cellfoundry_serving.atomic import atomic_path
from cellfoundry_serving.errors import ServingError


def keeps_times(trt: ModuleType) -> bool:
    """Whether builds measure kernels: TensorRT-RTX leaves that to the first run, and warns who asks it."""
    return "rtx" not in trt.__name__


def default_timing_cache(flavour: str, device: str) -> Path:
    """A file of the user's cache folder, one for each TensorRT and GPU: times of one say nothing of another."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cellfoundry" / "tensorrt"
    return folder / f"{hashlib.sha256(f'{flavour}/{device}'.encode()).hexdigest()[:16]}.timing"


def load_timing_cache(config: Any, path: Path) -> None:
    """Gives the builder the cache, a new one where there is none; ServingError for a file that is none."""
    blob = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(blob)
    if cache is None or not config.set_timing_cache(cache, False):
        raise ServingError(f"{path}: not a timing cache of this TensorRT and GPU; delete it or give another.")


def save_timing_cache(config: Any, path: Path) -> None:
    """Writes what the build measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.write_bytes(bytes(config.get_timing_cache().serialize()))
