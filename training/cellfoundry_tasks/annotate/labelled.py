"""The labelled cells of a source: which classes there are, and what is left out.

Legend: C labelled cells that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import numpy.typing as npt

from cellfoundry_tasks.annotate.config import MIN_CLASS_CELLS, AnnotateConfig
from cellfoundry_tasks.cells import (
    REPEATED_GENES,
    Source,
    check_unlabelled,
    chosen_rows,
    labels_of,
    read_counts,
)
from cellfoundry_tasks.errors import TaskError
from cellfoundry_tasks.quiet import quiet

PUBLIC_DATA = (
    "public cells with types: Baron's pancreas cells (GEO GSE84133), of which `cellfoundry quickstart` writes a donor, "
    "and PBMC of Kang et al. (GEO GSE96583)"
)


@dataclass(frozen=True)
class Labelled:
    """Cells with a class.

    Attributes:
        cells: their raw counts (C, genes).
        classes: names, sorted.
        class_C: int64 class numbers.
        heldout_C: bool, the cells that test; None where they are drawn.
        left_out: one sentence for every reason that cells of the source are not among these.
        source: name of the cells.
    """

    cells: ad.AnnData
    classes: tuple[str, ...]
    class_C: npt.NDArray[np.int64]
    heldout_C: npt.NDArray[np.bool_] | None
    left_out: tuple[str, ...]
    source: str


def read_labelled(source: Source, config: AnnotateConfig, *, layer: str | None = None) -> Labelled:
    """The cells of ``source`` that have a class with enough cells.

    Raises:
        DataError: it cannot be read.
        TaskError: no such column, a value to leave out that no cell has, or fewer than two classes with
            MIN_CLASS_CELLS cells.
    """
    cells = read_counts(source, layer=layer, public=PUBLIC_DATA)
    name = str(cells.uns["source"])
    label_C = labels_of(cells, config.label, unlabelled=config.unlabelled)
    check_unlabelled(config.unlabelled, config.label, cells)
    heldout_C = chosen_rows(cells, config.heldout_column) if config.heldout_column else None
    left_out = []
    if missing := int((label_C == "").sum()):
        left_out.append(f"{missing:,} cells without a label")
    classes, size_K = np.unique(label_C[label_C != ""], return_counts=True)
    lacking = {
        str(label): reason
        for label, size in zip(classes, size_K, strict=True)
        if (reason := _lack(label_C == label, int(size), heldout_C))
    }
    left_out += [f"class {label!r}: {reason}" for label, reason in lacking.items()]
    kept_C = ~np.isin(label_C, ["", *lacking])
    names, class_C = np.unique(label_C[kept_C], return_inverse=True)
    if len(names) < 2:
        found = f"only {str(names[0])!r} has" if len(names) else "none has"
        raise TaskError(
            f"{name}: annotation needs two classes of {MIN_CLASS_CELLS} or more cells, and in obs column "
            f"{config.label!r} {found} as many; name another column"
        )
    with quiet(REPEATED_GENES):
        kept = cells[kept_C].copy()
    return Labelled(
        kept,
        tuple(map(str, names)),
        class_C.astype(np.int64),
        None if heldout_C is None else heldout_C[kept_C],
        tuple(left_out),
        name,
    )


def _lack(of_class_C: npt.NDArray[np.bool_], size: int, heldout_C: npt.NDArray[np.bool_] | None) -> str:
    """Why a class cannot take part; nothing where it can."""
    if size < MIN_CLASS_CELLS:
        return f"{size} cells, fewer than {MIN_CLASS_CELLS}"
    if heldout_C is None:
        return ""
    test = int((of_class_C & heldout_C).sum())
    if test == 0 or size - test < 2:
        return f"{test} of its {size} cells are held out; it needs one at least, and two that are not"
    return ""
