"""One matrix of all cells over the genes that all of them were measured on.

Genes are matched through the model's vocabulary, so a file of symbols and one of Ensembl ids fit together.
Legend: C cells, G genes of the joint matrix, V genes of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cellfoundry_tasks.cells import Source, aligned, check_is_there, check_unlabelled, labels_of
from cellfoundry_tasks.errors import TaskError

REFERENCE, QUERY = "reference", "query"
FEWEST_CELLS = 100
"""LISI looks at 90 neighbours of a cell."""
FEWEST_CELLS_OF_BATCH = 10
DRAWN_OF_BATCH = 90
"""As many as LISI looks at."""
PUBLIC_DATA = (
    "public data for it: sc_mixology (GEO GSE118767), whose batches are protocols, and Kang et al. (GEO GSE96583), "
    "whose batches are conditions"
)

Labels = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Joint:
    """All cells of a mapping.

    Attributes:
        cells: raw counts, float32 CSR (C, G); var names are the vocabulary's.
        batch: of each cell, (C,).
        label: of each cell, (C,), "" where there is none.
        left_out: what of the input is not among the cells, a phrase each.
        two_files: whether the batches are a reference and a query of two files.
    """

    cells: ad.AnnData
    batch: Labels
    label: Labels
    left_out: tuple[str, ...]
    two_files: bool

    @property
    def batches(self) -> list[str]:
        """Names of the batches; of two files the reference first."""
        return [REFERENCE, QUERY] if self.two_files else sorted(set(self.batch.tolist()))

    @property
    def queries(self) -> list[str]:
        """Batches that take labels from the others: the query, or each in turn."""
        return [QUERY] if self.two_files else self.batches

    @property
    def query_is_labelled(self) -> bool:
        """Whether what is carried over can be compared with labels."""
        return not self.two_files or bool((self.label[self.batch == QUERY] != "").any())

    def rows(self, chosen: npt.NDArray[Any]) -> Joint:
        """The cells of ``chosen`` rows."""
        return Joint(
            self.cells[chosen].copy(),
            self.batch[chosen],
            self.label[chosen],
            self.left_out,
            self.two_files,
        )


def joint_batches(
    data: Source,
    vocab_genes: Sequence[str],
    *,
    batch: str,
    label: str,
    unlabelled: Sequence[str] = (),
    layer: str | None = None,
) -> Joint:
    """Labelled cells of one source whose obs column ``batch`` says where each is from.

    Raises:
        DataError: it cannot be read, or a value is no count.
        TaskError: a missing file or column, a value to leave out that no cell has, one batch only, too few cells, or
            a label that only one batch has.
    """
    cells = _read(data, vocab_genes, layer)
    batches, labels = labels_of(cells, batch), labels_of(cells, label, unlabelled=unlabelled)
    check_unlabelled(unlabelled, label, cells)
    kept = (batches != "") & (labels != "")
    left_out = (f"{(~kept).sum():,} cells without a batch or a label",) if (~kept).any() else ()
    joint = Joint(cells, batches, labels, left_out, two_files=False)
    joint = joint.rows(kept) if left_out else joint
    name = cells.uns["source"]
    if len(joint.batches) < 2:
        there = f"only {joint.batches[0]!r}" if joint.batches else "no labelled cell"
        raise TaskError(f"{name}: obs column {batch!r} holds {there}; a mapping joins two batches or more")
    pairs = pd.crosstab(joint.label, joint.batch)
    for lonely in pairs.index[(pairs > 0).sum(axis=1) == 1]:
        raise TaskError(
            f"{name}: label {lonely!r} is only in the batch {pairs.loc[lonely].idxmax()!r}, so no other batch can "
            f"pass it on; leave its cells out with --unlabelled {lonely!r}"
        )
    return _checked(joint, name)


def joint_reference(
    reference: Source,
    query: Source,
    vocab_genes: Sequence[str],
    *,
    label: str,
    unlabelled: Sequence[str] = (),
    layer: str | None = None,
) -> Joint:
    """Cells of a labelled reference and a query, whose labels are taken for judging where it has the column.

    Raises: see ``joint_batches``; TaskError also where the two share no gene.
    """
    known, asked = (_read(source, vocab_genes, layer) for source in (reference, query))
    label_of_known = labels_of(known, label, unlabelled=unlabelled)
    check_unlabelled(unlabelled, label, *(cells for cells in (known, asked) if label in cells.obs))
    kept = label_of_known != ""
    if len(set(label_of_known[kept].tolist())) < 2:
        raise TaskError(
            f"{known.uns['source']}: obs column {label!r} holds fewer than two labels to carry over"
        )
    left_out = (f"{(~kept).sum():,} reference cells without a label",) if (~kept).any() else ()
    label_of_asked = (
        labels_of(asked, label, unlabelled=unlabelled) if label in asked.obs else np.full(asked.n_obs, "")
    )
    shared = known.var_names.intersection(asked.var_names)
    if not len(shared):
        raise TaskError(
            f"{known.uns['source']} and {asked.uns['source']} share none of the model's genes; a mapping needs the "
            "same genes in both"
        )
    counts_CG = sp.vstack([known[kept, shared].X, asked[:, shared].X], format="csr")
    # The same barcode may be in both files.
    names = ad.utils.make_index_unique(pd.Index([*known.obs_names[kept], *asked.obs_names]))
    cells = ad.AnnData(counts_CG, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=shared))
    batch = np.repeat([REFERENCE, QUERY], [int(kept.sum()), asked.n_obs])
    joint = Joint(
        cells, batch, np.concatenate([label_of_known[kept], label_of_asked]), left_out, two_files=True
    )
    return _checked(joint, f"{known.uns['source']} and {asked.uns['source']}")


def drawn_rows(joint: Joint, number: int, seed: int) -> npt.NDArray[np.int64]:
    """At most ``number`` rows to compare methods on, ascending: first 90 of each batch, or all that it has, so that a
    small one is judged too; then evenly of all cells. Where that is more than ``number`` the batches share it, but
    each gives 10, of which BBKNN takes its neighbours.
    """
    if joint.cells.n_obs <= number:
        return np.arange(joint.cells.n_obs)
    order = np.random.default_rng(seed).permutation(joint.cells.n_obs)
    of_each = max(min(DRAWN_OF_BATCH, number // len(joint.batches)), FEWEST_CELLS_OF_BATCH)
    first = np.concatenate([order[joint.batch[order] == name][:of_each] for name in joint.batches])
    others = order[~np.isin(order, first)][: max(number - len(first), 0)]
    return np.sort(np.concatenate([first, others]))


def _checked(joint: Joint, name: str) -> Joint:
    if joint.cells.n_obs < FEWEST_CELLS:
        raise TaskError(f"{name}: {joint.cells.n_obs} cells to map; it takes {FEWEST_CELLS} or more")
    for batch in joint.batches:
        number = int((joint.batch == batch).sum())
        if number < FEWEST_CELLS_OF_BATCH:
            raise TaskError(
                f"{name}: batch {batch!r} has {number} cells; each needs {FEWEST_CELLS_OF_BATCH} or more"
            )
    empty = int((np.diff(joint.cells.X.indptr) == 0).sum())
    if empty:
        raise TaskError(f"{name}: {empty:,} cells have no counts in the genes used; remove them first")
    return joint


def _read(source: Source, vocab_genes: Sequence[str], layer: str | None) -> ad.AnnData:
    """``aligned`` counts; TaskError with where to get data for a file that is missing."""
    check_is_there(source, PUBLIC_DATA)
    return aligned(source, vocab_genes, layer=layer)
