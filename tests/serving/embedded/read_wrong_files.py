"""Reads files that are nearly an h5ad as the endpoint's worker does, each in a fork of this process.

    python read_wrong_files.py RIGHT.h5ad TASK.json FOLDER SEED ...

What the worker leaves lies in FOLDER/SEED, its exit status in ``status``.
"""

from __future__ import annotations

import os
import random
import sys
import traceback
from pathlib import Path

from fuzz_h5ad import wrong_h5ad

from cellfoundry_serving.endpoint import h5ad_worker as worker
from cellfoundry_serving.endpoint.worker_process import OUT_OF_MEMORY, limit_memory


def read(folder: Path) -> int:
    """The exit status of a worker, which HDF5 may have ended by a signal (then negative)."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        limit_memory()
        worker.main(folder)
        status = 0
    except MemoryError:
        status = OUT_OF_MEMORY
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def main() -> None:
    """As the module says."""
    right, task, out = (Path(argument) for argument in sys.argv[1:4])
    for seed in sys.argv[4:]:
        folder = out / seed
        folder.mkdir()
        (folder / worker.SOURCE).write_bytes(wrong_h5ad(random.Random(int(seed)), right.read_bytes()))
        (folder / worker.TASK).write_bytes(task.read_bytes())
        (folder / "status").write_text(str(read(folder)))


if __name__ == "__main__":
    main()
