"""Make the bundled Baron donor from an .h5ad of its raw counts.

The result is an ordinary .h5ad, kept small by storing genes column by column (CSC) with 16-bit integers,
byte-shuffled and deflated: 4.5 MB where float32 CSR takes 9.1 MB.

    python data_platform/scripts/make_bundled_baron.py baron_pancreas_h1.h5ad \
        data_platform/cellfoundry_data/bundled/baron_pancreas_h1.h5ad
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata
import h5py
import numpy as np


def main() -> None:
    """Write the compact file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()

    donor = anndata.read_h5ad(arguments.source)
    donor.X = donor.X.tocsc()
    assert donor.n_obs < 2**15, "row indices are stored as int16"
    assert (donor.X.data == donor.X.data.astype(np.uint16)).all(), "counts are stored as uint16"
    donor.write_h5ad(arguments.out, compression="gzip", compression_opts=9)
    compact(arguments.out)


def compact(path: Path) -> None:
    """Rewrite X in narrow integers, into a new file: HDF5 does not give back the space of what it deletes."""
    wide = path.with_suffix(".wide")
    path.replace(wide)
    with h5py.File(wide) as source, h5py.File(path, "w") as target:
        target.attrs.update(source.attrs)
        for name in source:
            if name != "X":
                source.copy(name, target)
        matrix = target.create_group("X")
        matrix.attrs.update(source["X"].attrs)
        for name, dtype in {"data": np.uint16, "indices": np.int16, "indptr": np.int32}.items():
            values = source["X"][name][:].astype(dtype)
            # One chunk compresses best, and the file is always read whole.
            matrix.create_dataset(
                name, data=values, chunks=values.shape, shuffle=True, compression="gzip", compression_opts=9
            )
    wide.unlink()


if __name__ == "__main__":
    main()
