"""Room for an embedding on its disk: asked before any work, and told in a sentence where it ends on the way."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellfoundry_data.ingest.jobs import is_disk_full
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.outputs.dispatch import ANY_ORDER
from cellfoundry_serving.outputs.h5ad import is_h5ad_file
from cellfoundry_serving.parts.work_folder import WorkFolder

ZARR_SHARE = 0.9
"""Chunks of a Zarr output are compressed, floats to about nine tenths."""


def needed_bytes(suffix: str, numbers: int, source: object) -> float:
    """Of the disk, for ``numbers`` bytes of results: waiting rows are there beside the output until it is written.

    An .h5ad of cell embeddings starts as a copy of an .h5ad ``source``.
    """
    if suffix in ANY_ORDER:
        return numbers * (ZARR_SHARE if suffix == ".zarr" else 1)
    copied = Path(str(source)).stat().st_size if suffix == ".h5ad" and is_h5ad_file(source) else 0
    return 2 * numbers + copied


def require_space(work: WorkFolder, size: float) -> None:
    """Raises ServingError where the disk has less room than ``size`` bytes."""
    free = shutil.disk_usage(work.path).free
    if free < size:
        raise ServingError(
            f"{work.out} takes {size / 1e9:,.1f} GB while it is written and {free / 1e9:,.1f} GB are free there; "
            "choose another --out, or a smaller output: --genes, --mean-by, --pool max."
        )


@contextmanager
def telling_a_full_disk(out: Path) -> Iterator[None]:
    """Where the disk or a limit of it ends in the block, raise that as one sentence; libraries tell of internals."""
    try:
        yield
    except Exception as error:  # HDF5 and Arrow raise errors of several kinds
        too_large = getattr(error, "errno", None) == errno.EFBIG or os.strerror(errno.EFBIG) in str(error)
        if not too_large and not is_disk_full(error):
            raise
        reason = os.strerror(errno.EFBIG if too_large else errno.ENOSPC)
        free = shutil.disk_usage(out.parent).free
        raise ServingError(
            f"{out} could not be written ({reason}; {free / 1e9:,.1f} GB are free there): make space and run the same "
            "command again, which goes on with what is done, or give another --out."
        ) from error
