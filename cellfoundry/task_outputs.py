"""Where tasks write: checked before they work, so that no finished run is lost."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData

    from cellfoundry_tasks.mapping import MapResult


def report_folder(out: str | Path) -> Path:
    """The folder, not made yet; TaskError, before any work, where it cannot be made or written to."""
    from cellfoundry_tasks.errors import TaskError

    folder = Path(out)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise TaskError(f"{there}: is a file; give a folder to write the report to")
    if not os.access(there, os.W_OK | os.X_OK):
        raise TaskError(f"{there}: is not writable for you; give another folder to write the report to")
    return folder


def check_sources_are_kept(sources: Iterable[AnnData | str | Path | None], copy: Path) -> None:
    """ServingError where ``copy`` would replace one of the sources."""
    from cellfoundry_serving.embed import check_source_is_kept

    for source in sources:
        if isinstance(source, str | Path) and Path(source).exists():  # what is missing is told of by the run
            check_source_is_kept(source, copy, adds_to_it=False)


def write_mapped(
    copy: Path, result: MapResult, query: AnnData | str | Path | None, layer: str | None
) -> None:
    """All cells of one file without their counts; or the query with what it takes: all that an AnnData or an .h5ad
    holds, of other formats the counts that were read and obs."""
    import anndata

    from cellfoundry_serving.atomic import atomic_path
    from cellfoundry_serving.outputs.h5ad import is_h5ad_file, nullable_text
    from cellfoundry_tasks.cells import read_counts

    if query is None:
        written = result.cells
    else:
        if isinstance(query, anndata.AnnData):
            written = query.to_memory() if query.isbacked else query.copy()
        elif is_h5ad_file(query):
            written = anndata.read_h5ad(query)
        else:
            written = read_counts(query, layer=layer)
        found = result.cells[result.cells.obs["batch"] == "query"]
        for column in ("transferred_label", "transferred_confidence"):
            written.obs[column] = found.obs[column].to_numpy()
        for key in found.obsm:
            written.obsm[key] = found.obsm[key]
    with atomic_path(copy) as partial, nullable_text():
        written.write_h5ad(partial)
