"""Whether the disk has room for an ingest, before it starts and when it is full."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest.jobs import DiskFullError, is_disk_full
from cellfoundry_data.ingest.plan import SourcePlan
from cellfoundry_data.ingest.runs import BYTES_PER_ENTRY
from cellfoundry_data.store.format import Profile, Values

STORE_BYTES_PER_ENTRY = {
    ("counts", "compact"): 1,
    ("counts", "fast"): 2,
    ("float32", "compact"): 4,
    ("float32", "fast"): 5,
}


def expected_bytes(plans: Iterable[SourcePlan], values: Values, profile: Profile) -> int:
    """About what runs and store take together, obs left out."""
    per_entry = BYTES_PER_ENTRY[values] + STORE_BYTES_PER_ENTRY[values, profile]
    return sum(plan.entries for plan in plans) * per_entry


def require_space(work: Path, expected: int) -> None:
    """Raise DataError where the disk has less than half of what will be needed: cells that are removed and a
    sample that misleads do not make up for more.
    """
    missing = expected - _bytes_in(work)
    free = shutil.disk_usage(work).free
    if free < missing / 2:
        raise DataError(_sentence(work, free, missing))


@contextmanager
def disk_full_as_sentence(work: Path, expected: int) -> Iterator[None]:
    """Turn the errors of a full disk into one DataError."""
    try:
        yield
    except (DiskFullError, OSError) as error:
        if isinstance(error, OSError) and not is_disk_full(error):
            raise
        free = shutil.disk_usage(work).free
        raise DataError(_sentence(work, free, max(0, expected - _bytes_in(work)))) from error


def _sentence(work: Path, free: int, missing: int) -> str:
    return (
        f"the disk of {work.parent} is too small for this ingest: about {_size(missing)} more are needed and "
        f"{_size(free)} are free; make space and run the same command again, which goes on where it stopped, or "
        "choose another --store."
    )


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size(n_bytes: float) -> str:
    """``1_500_000`` -> ``1.5 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
