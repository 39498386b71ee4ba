"""What Python and the C library do about memory beside an ingest's work: a tenth of its CPU time, if left alone."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 2**30


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Python's collector leaves alone what is there before the block.

    The modules of Ray, Arrow and ours are 250,000 objects; it would look through them again and again while Numba and
    Ray start and the gene names are read, 0.3 CPU-seconds in the driver.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def settle_worker() -> None:
    """In a process that does nothing but an ingest's tasks: as ``collector_at_rest``, for good, and memory that was
    freed stays with the process, up to 1 GiB.

    The system clears what it hands out, and glibc by itself would give a block's arrays back after each block: 0.7
    CPU-seconds in 200,000 cells. The largest memory of a process is the same. Other C libraries are left as they are.
    """
    gc.freeze()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
