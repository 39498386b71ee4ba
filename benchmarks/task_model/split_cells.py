"""Set evaluation cells aside: copies of h5ad files with an obs column ``heldout``, and the other cells for pretraining.

    python benchmarks/task_model/split_cells.py --out work baron.h5ad pbmc3k.h5ad --whole pbmc8k.h5ad

writes ``work/labelled/NAME.h5ad`` (every cell, with the column), ``work/heldout/NAME.h5ad`` (1,000 of the held-out
cells at most) and ``work/pretrain/NAME.h5ad`` (cells that are not held out; files after ``--whole`` as they are).
``cellfoundry data ingest`` takes the last folder, ``cellfoundry task annotate`` and ``enhance`` the first one's files
with ``--heldout-column heldout``, and ``task map`` the second one's.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import anndata as ad
import numpy as np
import numpy.typing as npt

SHARE = 0.3
MOST_CELLS = 1_000
"""Of a file in ``heldout``: mapping expresses all cells twice, at a twentieth of a second each."""


def draws(file: str, names: npt.NDArray[np.str_]) -> npt.NDArray[np.float64]:
    """A number in [0, 1) of each cell, by a hash of file and cell name: the same on any machine, in any order."""
    return np.array(
        [
            int.from_bytes(hashlib.sha256(f"{file}/{name}".encode()).digest()[:8], "big") / 2**64
            for name in names
        ]
    )


def main() -> None:
    """Write the folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="labelled files, of which cells are held out")
    parser.add_argument("--whole", nargs="*", type=Path, default=[], help="files of which none is")
    parser.add_argument("--out", required=True, type=Path)
    given = parser.parse_args()
    labelled, held, pretrain = (given.out / name for name in ("labelled", "heldout", "pretrain"))
    for folder in (labelled, held, pretrain):
        folder.mkdir(parents=True)
    for path in given.files:
        cells = ad.read_h5ad(path)
        drawn = draws(path.stem, cells.obs_names.to_numpy(dtype=str))
        cells.obs["heldout"] = drawn < SHARE
        first = np.sort(np.argsort(drawn)[: min(MOST_CELLS, int((drawn < SHARE).sum()))])
        cells[first].copy().write_h5ad(held / path.name)
        cells.write_h5ad(labelled / path.name)
        cells[~cells.obs["heldout"]].copy().write_h5ad(pretrain / path.name)
        print(f"{path.name}: {cells.n_obs:,} cells, {int(cells.obs['heldout'].sum()):,} held out")
    for path in given.whole:
        cells = ad.read_h5ad(path)
        cells.write_h5ad(pretrain / path.name)
        print(f"{path.name}: {cells.n_obs:,} cells, none held out")


if __name__ == "__main__":
    main()
