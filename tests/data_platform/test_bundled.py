"""The Baron donor that ships with the package."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

import anndata
import numpy as np
import pytest

MATRIX_SHA256 = "719e2096d9b31be4a47eabc63ddd805a072cacbbbae8c331c1dcfce249f30625"


@pytest.fixture(scope="module")
def donor(baron_h5ad: Path) -> anndata.AnnData:
    return anndata.read_h5ad(baron_h5ad)


def test_shape_counts_and_labels_are_pinned(donor: anndata.AnnData) -> None:
    assert donor.shape == (1937, 20125)
    assert donor.X.format == "csr"
    assert donor.X.dtype == np.float32
    assert donor.X.sum(dtype=np.float64) == 11_244_731
    assert donor.obs["cell_type"].nunique() == 14
    digest = hashlib.sha256()
    for array, dtype in ((donor.X.data, "<u2"), (donor.X.indices, "<i4"), (donor.X.indptr, "<i4")):
        digest.update(array.astype(dtype).tobytes())
    for names in (donor.obs_names, donor.var_names, donor.obs["cell_type"]):
        digest.update("\n".join(names).encode())
    assert digest.hexdigest() == MATRIX_SHA256


def test_equals_the_original(donor: anndata.AnnData, shared: Path) -> None:
    original = anndata.read_h5ad(shared / "data" / "baron_pancreas_h1.h5ad")
    assert (donor.X != original.X).nnz == 0
    assert donor.obs.equals(original.obs)
    assert donor.var.equals(original.var)


def test_shipped_file_is_small_and_opens_as_it_is(donor: anndata.AnnData) -> None:
    shipped = resources.files("cellfoundry_data") / "bundled"
    with resources.as_file(shipped / "baron_pancreas_h1.h5ad") as path:
        assert path.stat().st_size <= 5 * 2**20
        assert (anndata.read_h5ad(path).X.tocsr() != donor.X).nnz == 0
    assert "GSE84133" in (shipped / "README.md").read_text()


def test_nothing_else_is_left_in_the_folder(baron_h5ad: Path) -> None:
    assert [file.name for file in baron_h5ad.parent.iterdir()] == [baron_h5ad.name]
