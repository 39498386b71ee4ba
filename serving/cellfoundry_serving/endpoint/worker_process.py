"""Processes of their own for work that must not cost the server: run by a folder of files, within bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

MEMORY_BYTES = 4 * 2**30  # of address space, of which imports take 0.6 GiB
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""The cores are the engine's."""
LOG = "stderr.txt"
LOGGED = 500  # last characters of it


OUT_OF_MEMORY = 3  # exit status


class WorkerKilledError(Exception):
    """The worker did not survive its task: out of memory, or ended by a signal."""


class WorkerFailedError(Exception):
    """The worker failed: a defect of ours."""


async def run_worker(module: str, folder: Path) -> None:
    """Waits for the end of ``python -m module folder``, whose results stand in the folder.

    What it says on standard error goes into our log, the end of it.

    The process is ended where the caller is cancelled.

    Raises:
        WorkerKilledError: it needed more memory than it may have, or was ended by a signal.
        WorkerFailedError: it ended otherwise than it should.
    """
    with (folder / LOG).open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            module,
            str(folder),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=errors,
            env=os.environ | ONE_THREAD,
        )
    try:
        await process.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    status, said = process.returncode, end_of(folder / LOG)
    if status or said:
        logger.warning("%s ended with status %d: %r", module, status, said)
    if status:
        killed = status < 0 or status == OUT_OF_MEMORY
        raise (WorkerKilledError if killed else WorkerFailedError)(f"{module} ended with status {status}")


def end_of(file: Path) -> str:
    """The last characters of what a worker said."""
    with file.open("rb") as said:
        said.seek(max(0, file.stat().st_size - LOGGED))
        return said.read().decode(errors="replace")


def run_task(task: Callable[[Path], None]) -> None:
    """What a worker does: its task, of the folder that the command names, within ``MEMORY_BYTES``."""
    limit_memory()
    try:
        task(Path(sys.argv[1]))
    except MemoryError:
        traceback.print_exc()
        sys.exit(OUT_OF_MEMORY)


def limit_memory() -> None:
    """More than ``MEMORY_BYTES`` raise MemoryError from here on, where the system knows such a limit."""
    try:
        import resource
    except ImportError:  # of POSIX systems alone
        return
    # Some know the limit but not how to set it; where a lower one holds already, that stays.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
