"""Where the benchmark keeps what is slow to make: synthetic cells, converted copies, the peers' environments."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

VARIABLE = "CELLFOUNDRY_BENCH_CACHE"


def cache_folder() -> Path:
    """``CELLFOUNDRY_BENCH_CACHE``, else ``cellfoundry-bench`` in the user's cache folder; made if missing."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get(VARIABLE) or Path(user_cache) / "cellfoundry-bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def short_hash(*parts: object) -> str:
    """Twelve hex digits of SHA-256 over the parts' text; what a cached folder depends on goes into its name."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:12]


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The cache's folder ``name``; ``make`` fills it first if it is not there, and it appears whole or not at all."""
    folder = cache_folder() / name
    if not folder.exists():
        partial = folder.with_name(f".{name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            make(partial)
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder
