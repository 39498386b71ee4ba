"""Every format gives the same matrix, names and obs; every damaged file gives one sentence."""

from __future__ import annotations

import contextlib
import gzip
import pickle
import tracemalloc
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import scipy.sparse as sp
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellfoundry_data.errors import DataError
from cellfoundry_data.readers import ACCEPTED, CountsSource, open_source
from cellfoundry_data.readers.memory import AnnDataSource

CELLS, GENES = 23, 11
SYMBOLS = [f"SYM{column}" for column in range(GENES)]
IDS = [f"ENSG{column:011d}" for column in range(GENES)]
BARCODES = [f"CELL{row}-1" for row in range(CELLS)]


def counts() -> sp.csr_matrix:
    matrix = sp.random(CELLS, GENES, density=0.4, format="csr", random_state=3, dtype=np.float32)
    matrix.data[:] = np.arange(1, matrix.nnz + 1) % 300 + 1
    return matrix


def adata(matrix: object = None) -> anndata.AnnData:
    obs = pd.DataFrame({"kind": pd.Categorical(["a", "b", "a"] * 7 + ["b"] * 2)}, index=BARCODES)
    return anndata.AnnData(
        counts() if matrix is None else matrix, obs=obs, var=pd.DataFrame({"ensembl": IDS}, index=SYMBOLS)
    )


def write_h5ad(path: Path, matrix: object = None) -> Path:
    adata(matrix).write_h5ad(path / "a.h5ad", compression="gzip")
    return path / "a.h5ad"


def write_zarr(path: Path, matrix: object = None, zarr_format: int = 2) -> Path:
    with anndata.settings.override(zarr_write_format=zarr_format), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata announces a new default format; only writing is concerned
        adata(matrix).write_zarr(path / "a.zarr")
    return path / "a.zarr"


def write_tenx_h5(path: Path, version: int = 3) -> Path:
    matrix = counts()
    with h5py.File(path / "a.h5", "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        group["barcodes"] = np.array(BARCODES, "S")
        group["data"], group["indices"] = matrix.data.astype(np.int32), matrix.indices.astype(np.int64)
        group["indptr"], group["shape"] = matrix.indptr.astype(np.int64), np.array([GENES, CELLS], np.int32)
        if version == 3:
            group["features/id"], group["features/name"] = np.array(IDS, "S"), np.array(SYMBOLS, "S")
            group["features/feature_type"] = np.array(["Gene Expression"] * GENES, "S")
        else:
            group["genes"], group["gene_names"] = np.array(IDS, "S"), np.array(SYMBOLS, "S")
    return path / "a.h5"


def write_tenx_folder(path: Path, version: int = 3) -> Path:
    folder = path / "filtered"
    folder.mkdir()
    ends = "\tGene Expression\n" if version == 3 else "\n"
    features = "".join(f"{i}\t{s}{ends}" for i, s in zip(IDS, SYMBOLS, strict=True))
    barcodes = "".join(f"{barcode}\n" for barcode in BARCODES)
    scipy.io.mmwrite(folder / "matrix.mtx", counts().T.astype(int))
    if version == 2:
        (folder / "genes.tsv").write_text(features)
        (folder / "barcodes.tsv").write_text(barcodes)
        return folder
    matrix = (folder / "matrix.mtx").read_bytes()
    (folder / "matrix.mtx").unlink()
    (folder / "matrix.mtx.gz").write_bytes(gzip.compress(matrix))
    (folder / "features.tsv.gz").write_bytes(gzip.compress(features.encode()))
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress(barcodes.encode()))
    return folder


def table_text(delimiter: str, corner: str = "", end: str = "\n", quote: str = "") -> str:
    def row(name: str, values: list[str]) -> str:
        return delimiter.join([f"{quote}{name}{quote}", *values]) + end

    head = ([corner] if corner != "none" else []) + [f"{quote}{symbol}{quote}" for symbol in SYMBOLS]
    dense = counts().toarray().astype(int)
    return (
        delimiter.join(head)
        + end
        + "".join(
            row(name, [str(value) for value in values]) for name, values in zip(BARCODES, dense, strict=True)
        )
    )


def write_text(path: Path, name: str, text: str) -> Path:
    data = text.encode()
    (path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path / name


def write_npy(path: Path) -> Path:
    np.save(path / "a.npy", np.asfortranarray(counts().toarray().astype(np.uint16)))
    return path / "a.npy"


def write_npz(path: Path, form: str = "csr") -> Path:
    sp.save_npz(path / "a.npz", counts().asformat(form))
    return path / "a.npz"


def write_loom(path: Path, chunks: tuple[int, int] | None = (4, 4)) -> Path:
    with h5py.File(path / "a.loom", "w") as file:
        file.create_dataset("matrix", data=counts().toarray().T, chunks=chunks)
        file["row_attrs/Gene"], file["row_attrs/Accession"] = np.array(SYMBOLS, "S"), np.array(IDS, "S")
        file["row_attrs/Selected"] = np.arange(GENES)
        file["col_attrs/CellID"] = np.array(BARCODES, h5py.string_dtype())
        file["col_attrs/batch"], file["col_attrs/pca"] = np.arange(CELLS), np.zeros((CELLS, 2))
    return path / "a.loom"


def long_table(form: str = "dictionary") -> pa.Table:
    """Entries cell by cell or gene by gene."""
    matrix = counts().tocsc().tocoo() if form == "by gene" else counts().tocoo()
    cells, genes = pa.array(np.array(BARCODES)[matrix.row]), pa.array(np.array(SYMBOLS)[matrix.col])
    if form == "dictionary":
        cells, genes = cells.dictionary_encode(), genes.dictionary_encode()
    return pa.table(
        {"barcode": cells, "Gene": genes, "extra": matrix.data, "UMI": matrix.data.astype(np.int32)}
    )


def write_parquet(path: Path, form: str = "dictionary") -> Path:
    pq.write_table(
        long_table(form), path / "a.parquet", row_group_size=17, use_dictionary=form == "dictionary"
    )
    return path / "a.parquet"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "h5ad-csr": write_h5ad,
    "h5ad-csc": lambda path: write_h5ad(path, counts().tocsc()),
    "h5ad-dense": lambda path: write_h5ad(path, counts().toarray().astype(np.float64)),
    "h5ad-int": lambda path: write_h5ad(path, counts().astype(np.int64)),
    "zarr-2-csr": write_zarr,
    "zarr-3-csr": lambda path: write_zarr(path, zarr_format=3),
    "zarr-3-csc": lambda path: write_zarr(path, counts().tocsc(), 3),
    "zarr-2-dense": lambda path: write_zarr(path, counts().toarray()),
    "10x-h5-v3": write_tenx_h5,
    "10x-h5-v2": lambda path: write_tenx_h5(path, 2),
    "10x-folder-v3": write_tenx_folder,
    "10x-folder-v2": lambda path: write_tenx_folder(path, 2),
    "csv": lambda path: write_text(path, "a.csv", table_text(",")),
    "csv-gz": lambda path: write_text(path, "my.cells.csv.gz", table_text(",", "cell")),
    "csv-quoted-crlf": lambda path: write_text(path, "a.csv", table_text(",", '""', "\r\n", '"')),
    "csv-bom": lambda path: write_text(path, "a.CSV", "\ufeff" + table_text(",")),
    "tsv": lambda path: write_text(path, "a.tsv", table_text("\t", "cell") + "\n"),
    "tsv-from-R": lambda path: write_text(path, "a.tsv.gz", table_text("\t", "none", quote='"')),
    "npy": write_npy,
    "npz": write_npz,
    "npz-csc": lambda path: write_npz(path, "csc"),
    "npz-coo": lambda path: write_npz(path, "coo"),
    "loom": write_loom,
    "loom-contiguous": lambda path: write_loom(path, None),
}


LONG_FORM: dict[str, Callable[[Path], Path]] = {  # numbers cells and genes as they come
    "parquet": write_parquet,
    "parquet-plain": lambda path: write_parquet(path, "plain"),
}
EVERY = WRITERS | LONG_FORM


def whole(source: CountsSource, block_cells: int = 4096) -> sp.csr_matrix:
    blocks = list(source.blocks(block_cells))
    assert [first for first, _ in blocks] == list(range(0, source.n_cells, block_cells))
    assert all(block.dtype == np.float32 and block.format == "csr" for _, block in blocks)
    return sp.vstack([block for _, block in blocks], format="csr")


@pytest.mark.parametrize("block_cells", [1, 5, 4096])
@pytest.mark.parametrize("form", WRITERS)
def test_every_format_gives_the_same_matrix(form: str, block_cells: int, tmp_path: Path) -> None:
    source = pickle.loads(pickle.dumps(open_source(WRITERS[form](tmp_path))))
    assert (source.n_cells, source.n_columns) == (CELLS, GENES)
    np.testing.assert_array_equal(whole(source, block_cells).toarray(), counts().toarray())
    assert source.in_vocabulary_columns == form.startswith("np")
    if not source.in_vocabulary_columns:
        assert source.gene_names == SYMBOLS
        assert source.obs_names.tolist() == list(source.obs.index) == BARCODES
    if form.startswith(("h5ad", "zarr", "10x", "loom")):
        assert source.alternative_names == [IDS]
    if form.startswith(("h5ad", "zarr")):
        assert source.obs["kind"].cat.categories.tolist() == ["a", "b"]


def sorted_by_name(source: CountsSource) -> np.ndarray:
    """The matrix with cells and genes in the order of the other formats."""
    rows = [source.obs_names.tolist().index(name) for name in BARCODES]
    return whole(source).toarray()[np.ix_(rows, [source.gene_names.index(name) for name in SYMBOLS])]


@pytest.mark.parametrize("form", ["dictionary", "plain", "by gene"])
def test_parquet_in_long_form(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellfoundry_data.readers.parquet.PIECE_ENTRIES", 10)
    source = pickle.loads(pickle.dumps(open_source(write_parquet(tmp_path, form))))
    np.testing.assert_array_equal(sorted_by_name(source), counts().toarray())
    assert source.format == "parquet"
    if form != "by gene":
        assert source.obs_names.tolist() == BARCODES


def test_a_folder_of_parquet_parts_is_one_source(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    table = long_table()  # a cell's entries are cut where a part ends
    for part, start in enumerate(range(0, len(table), 40)):
        pq.write_table(table.slice(start, 40), tmp_path / "parts" / f"part-{part}.parquet")
    (tmp_path / "parts" / "_SUCCESS").touch()
    np.testing.assert_array_equal(sorted_by_name(open_source(tmp_path / "parts")), counts().toarray())


@pytest.mark.parametrize("later", [["b", "c", "a"], ["c", "b"]])
def test_parquet_parts_that_share_a_cell_are_refused(later: list[str], tmp_path: Path) -> None:
    """Samples have the same barcodes; only a cell that was cut between two parts is in both."""
    for name, cells in (("one", ["a", "b"]), ("two", later)):
        pq.write_table(
            pa.table({"cell": cells, "gene": ["G"] * len(cells), "count": [1] * len(cells)}),
            tmp_path / f"{name}.parquet",
        )
    says = message(tmp_path)
    assert f"cell {later[-1]} is in one.parquet and in two.parquet" in says
    assert f"{tmp_path}/*.parquet to take them as separate sources" in says


def test_a_gene_twice_in_a_cell_is_summed(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"cell": [7, 8, 7], "symbol": ["B", "A", "B"], "value": [1.0, 2.0, 4.0]}),
        tmp_path / "a.parquet",
    )
    source = open_source(tmp_path / "a.parquet")
    assert (source.obs_names.tolist(), source.gene_names) == (["7", "8"], ["B", "A"])
    assert whole(source).toarray().tolist() == [[5, 0], [0, 2]]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"cell": ["a"], "gene": ["B"]},
            "has no column named count or counts or value or umi; it has cell, gene.",
        ),
        ({"cell": ["a", None], "gene": ["B", "B"], "count": [1, 2]}, "column 'cell' has empty fields"),
        ({"cell": ["a"], "gene": ["B"], "count": ["x"]}, "not numbers"),
        ({"cell": [[1]], "gene": ["B"], "count": [1]}, "cannot be read as a Parquet table"),
    ],
)
def test_bad_parquet(columns: dict[str, list[object]], says: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert says in message(tmp_path / "a.parquet")


def test_loom_attributes_and_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_loom(tmp_path)
    with h5py.File(path, "a") as file:
        file["layers/spliced"] = file["matrix"][:] * 2
    source = open_source(path)
    assert (source.format, source.matrix_name, source.row_access) == ("loom", "X", True)
    assert list(source.obs.columns) == ["batch"]
    assert source.obs_rows(3, 5)["batch"].tolist() == [3, 4]
    source = open_source(path, layer="spliced")
    np.testing.assert_array_equal(whole(source).toarray(), counts().toarray() * 2)
    with pytest.raises(DataError, match=r"has no 'layers/x'; it holds X, layers/spliced\.$"):
        open_source(path, layer="x")
    # chunks as wide as the file: sorted through a temporary file
    monkeypatch.setattr("cellfoundry_data.readers.loom.MAX_CHUNK_CELLS", 3)
    monkeypatch.setattr("cellfoundry_data.readers.loom.PIECE_ENTRIES", 10)
    by_gene = open_source(path)
    assert not by_gene.row_access
    np.testing.assert_array_equal(whole(by_gene, 7).toarray(), counts().toarray())


def test_loom_without_gene_names(tmp_path: Path) -> None:
    path = write_loom(tmp_path)
    with h5py.File(path, "a") as file:
        del file["row_attrs/Gene"], file["row_attrs/Accession"]
    assert "its row_attrs name no genes" in message(path)


@pytest.mark.parametrize("write", ["h5ad", "zarr"])
def test_rows_of_obs(write: str, tmp_path: Path) -> None:
    data = adata()
    data.obs["sex"] = pd.array([True, None] + [False] * (CELLS - 2), "boolean")
    data.obs["age"] = pd.array([1, None] + [3] * (CELLS - 2), "Int32")
    data.obs["note"] = [f"n{row}" for row in range(CELLS)]
    data.obs["share"] = np.linspace(0, 1, CELLS)
    data.obs["stage"] = pd.Categorical(["late"] * CELLS, ["early", "late"], ordered=True)
    path = tmp_path / f"a.{write}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.write_h5ad(path) if write == "h5ad" else data.write_zarr(path)
    source = open_source(path)
    for start, stop in ((0, CELLS), (1, 4), (5, 5)):
        expected = data.obs.iloc[start:stop]
        pd.testing.assert_frame_equal(source.obs_rows(start, stop), expected, check_index_type=False)
    pd.testing.assert_frame_equal(source.obs, data.obs)


@pytest.mark.parametrize("write", ["h5ad", "zarr"])
def test_layers_and_raw(write: str, tmp_path: Path) -> None:
    data = adata()
    data.raw = data
    data.layers["twice"] = (data.X * 2).toarray()
    data = data[:, :4].copy()
    path = tmp_path / f"a.{write}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.write_h5ad(path) if write == "h5ad" else data.write_zarr(path)
    for layer, genes, factor in ((None, 4, 1), ("twice", 4, 2), ("raw", GENES, 1)):
        source = open_source(path, layer=layer)
        assert source.gene_names == SYMBOLS[:genes]
        np.testing.assert_array_equal(whole(source).toarray(), counts().toarray()[:, :genes] * factor)
    with pytest.raises(DataError, match=r"has no 'layers/nope'; it holds X, raw, layers/twice\.$"):
        open_source(path, layer="nope")


@pytest.mark.parametrize("write", ["h5ad", "zarr", "memory"])
@pytest.mark.parametrize(
    "empty",
    [
        sp.csr_matrix((CELLS, GENES), dtype=np.float32),
        np.zeros((CELLS, GENES), np.int32),
        -counts().astype(int),
    ],
)
def test_an_x_without_counts_is_passed_over(empty: object, write: str, tmp_path: Path) -> None:
    stored = adata(empty)
    stored.layers["counts"] = counts()
    if write == "memory":
        assert AnnDataSource(stored).matrix_name == "layers/counts"
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata announces a new default format
        getattr(stored, f"write_{write}")(tmp_path / f"a.{write}")
    source = open_source(tmp_path / f"a.{write}")
    assert source.matrix_name == "layers/counts"
    np.testing.assert_array_equal(whole(source).toarray(), counts().toarray())


def test_layer_of_a_format_without_layers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"only \.h5ad, \.zarr and \.loom have layers"):
        open_source(write_npy(tmp_path), layer="counts")


def test_antibodies_beside_genes_are_left_out(tmp_path: Path) -> None:
    kinds = ["Antibody Capture", *["Gene Expression"] * (GENES - 2), "CRISPR Guide Capture"]
    h5 = write_tenx_h5(tmp_path)
    with h5py.File(h5, "a") as file:
        file["matrix/features/feature_type"][:] = np.array(kinds, "S")
    folder = write_tenx_folder(tmp_path)
    lines = ["\t".join(row) + "\n" for row in zip(IDS, SYMBOLS, kinds, strict=True)]
    (folder / "features.tsv.gz").write_bytes(gzip.compress("".join(lines).encode()))
    for path in (h5, folder):
        source = open_source(path)
        assert source.gene_names == SYMBOLS[1:-1]
        np.testing.assert_array_equal(whole(source, 7).toarray(), counts().toarray()[:, 1:-1])


def test_prefixed_folder_and_quoted_cell_names(tmp_path: Path) -> None:
    folder = write_tenx_folder(tmp_path, 2)
    for file in list(folder.iterdir()):
        file.rename(folder / f"GSM1_{file.name}")
    assert whole(open_source(folder)).nnz == counts().nnz
    source = open_source(write_text(tmp_path, "q.csv", 'x,A,B\n"cell, ""one""",1,2\n"",3,4\n"a""","5",6\n'))
    assert source.obs_names.tolist() == ['cell, "one"', "", 'a"']
    assert whole(source).toarray().tolist() == [[1, 2], [3, 4], [5, 6]]


def test_dense_and_text_are_parsed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellfoundry_data.readers.table.PIECE_VALUES", 3 * GENES)
    monkeypatch.setattr("cellfoundry_data.readers.matrix.DENSE_PIECE_BYTES", 3 * GENES)
    for form in ("csv", "npy", "h5ad-dense"):
        source = open_source(WRITERS[form](tmp_path))
        np.testing.assert_array_equal(whole(source, 10).toarray(), counts().toarray())


LARGE = (4000, 1000, 250)
"""Cells, genes and entries a cell: 1 M entries, 8 MB in memory as values and indices alone."""


def large_counts() -> sp.csr_matrix:
    cells, genes, a_cell = LARGE
    columns = (np.arange(a_cell) * 4 + np.arange(cells)[:, None] % 4).astype(np.int32)
    values = (np.arange(cells * a_cell) % 251 + 1).astype(np.float32)
    return sp.csr_matrix((values, columns.ravel(), np.arange(cells + 1) * a_cell), shape=(cells, genes))


def write_large(form: str, folder: Path) -> Path:
    matrix = large_counts()
    kind, _, encoding = form.partition(" ")
    path = folder / f"a.{kind}"
    if kind in ("h5ad", "zarr"):
        data = anndata.AnnData(matrix.toarray() if encoding == "dense" else matrix.asformat(encoding))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data.write_h5ad(path) if kind == "h5ad" else data.write_zarr(path, chunks=[500, 500])
    elif kind == "npz":
        sp.save_npz(path, matrix.asformat(encoding))
    elif kind == "npy":
        np.save(path, matrix.toarray())
    elif kind == "loom":
        with h5py.File(path, "w") as file:
            file.create_dataset(
                "matrix", data=matrix.toarray().T, chunks=(64, 64) if encoding else (1, LARGE[0])
            )
            file["row_attrs/Gene"] = np.array([f"g{gene}" for gene in range(LARGE[1])], "S")
            file.create_group("col_attrs")
    elif kind == "parquet":
        entries = matrix.tocsc().tocoo()
        pq.write_table(pa.table({"cell": entries.row, "gene": entries.col, "count": entries.data}), path)
    else:
        path.mkdir()
        entries = matrix.tocsc().tocoo()
        lines = pd.DataFrame(
            {"gene": entries.col + 1, "cell": entries.row + 1, "count": entries.data.astype(int)}
        )
        head = f"%%MatrixMarket matrix coordinate integer general\n{LARGE[1]} {LARGE[0]} {matrix.nnz}\n"
        (path / "matrix.mtx").write_text(head + lines.to_csv(sep=" ", header=False, index=False))
        (path / "genes.tsv").write_text("".join(f"g{gene}\n" for gene in range(LARGE[1])))
        (path / "barcodes.tsv").write_text("".join(f"c{cell}\n" for cell in range(LARGE[0])))
    return path


@pytest.mark.parametrize(
    "form",
    [
        *(
            "h5ad csr",
            "h5ad csc",
            "h5ad dense",
            "zarr csr",
            "zarr csc",
            "npz csr",
            "npz csc",
            "npz coo",
            "npy",
        ),
        *("loom", "loom by cell", "parquet", "mtx"),
    ],
)
def test_memory_is_set_by_the_block(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the matrix at most, with pieces of 1/64 of it and blocks of 1/40."""
    for module in ("matrix", "npz", "parquet", "loom"):
        monkeypatch.setattr(f"cellfoundry_data.readers.{module}.PIECE_ENTRIES", 2**14)
    monkeypatch.setattr("cellfoundry_data.readers.matrix.DENSE_PIECE_BYTES", 2**17)
    monkeypatch.setattr("cellfoundry_data.readers.loom.DENSE_PIECE_BYTES", 2**17)
    monkeypatch.setattr("cellfoundry_data.readers.mtx_text.PIECE_BYTES", 2**16)
    path = write_large(form, tmp_path)
    source = open_source(path)
    deque(source.blocks(100), maxlen=0)  # imports and compiles what a first pass needs
    tracemalloc.start()
    total = sum(float(block.data.sum(dtype=np.float64)) for _, block in source.blocks(100))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == large_counts().data.sum(dtype=np.float64)
    assert peak < 2_000_000


# --- bad input -------------------------------------------------------------------------------------------


def message(path: Path | str, layer: str | None = None) -> str:
    """The one sentence a user sees for a source that cannot be read."""
    with pytest.raises(DataError) as error:
        whole(open_source(path, layer=layer))
    text = str(error.value)
    assert Path(path).name in text
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_missing_and_unknown(tmp_path: Path) -> None:
    assert "no such file or folder" in message(tmp_path / "none.h5ad")
    assert ACCEPTED in message(write_text(tmp_path, "a.xlsx", "x"))
    assert ACCEPTED in message(write_text(tmp_path, "noending", "x"))
    assert ACCEPTED in message(tmp_path)


@pytest.mark.parametrize("name", ["a.h5ad", "a.h5", "a.npy", "a.npz", "a.csv.gz", "a.zarr"])
@pytest.mark.parametrize("content", [b"", b"not what the name says\n"])
def test_wrong_magic(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert "cannot be read as" in message(tmp_path / name) or not content


@pytest.mark.parametrize(
    "form", [form for form in EVERY if not form.startswith(("zarr", "10x-folder", "csv", "tsv"))]
)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated(form: str, share: float, tmp_path: Path) -> None:
    path = EVERY[form](tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    message(path)


@pytest.mark.parametrize("form", ["csv-gz", "tsv-from-R"])
def test_truncated_gzip(form: str, tmp_path: Path) -> None:
    path = WRITERS[form](tmp_path)
    path.write_bytes(path.read_bytes()[:-12])
    assert "cannot be read as a table" in message(path)


def test_truncated_folder_file(tmp_path: Path) -> None:
    folder = write_tenx_folder(tmp_path)
    matrix = folder / "matrix.mtx.gz"
    matrix.write_bytes(gzip.compress(gzip.decompress(matrix.read_bytes())[:-40]))
    with pytest.raises(DataError, match=r"matrix.mtx.gz: cannot be read as a matrix-market file"):
        whole(open_source(folder))
    matrix.unlink()
    (folder / "genes.tsv").write_text("")
    assert "found several (features.tsv.gz, genes.tsv)" in message_of_two_features(folder)


def message_of_two_features(folder: Path) -> str:
    (folder / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n1 1 0\n")
    return message(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (",A,B\nc0,1,2\nc1,1\n", "row 1 (c1) has 1 values where the first line names 2 genes"),
        (",A,B\nc0,1,2\nc1\n", "row 1 (c1) has 0 values"),
        (",A,B\nc0,1,2\nc1,3,x7\n", "row 1 (c1), gene B has the value 'x7', which is not a number"),
        (",A,B\nc0,1,2,3\nc1,1,2,3\n", "row 0 (c0) has 3 values where the first line names 2 genes"),
        ("Cell,A,B\nc0,1,2,3\n", "row 0 (c0) has 3 values"),
        (",A,B\nc0,1,\n", "row 0 (c0), gene B has the value '', which is not a number"),
        (",A,B\n", "is empty, 0 cells x 2 genes"),
        ("", "is empty"),
        ("\tA\tB\nc0\t1\t2\n", "fields must be separated by ','"),
    ],
)
def test_bad_table(text: str, says: str, tmp_path: Path) -> None:
    assert says in message(write_text(tmp_path, "t.csv", text))


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(b",A,B\nc\xe9,1,2\n")
    assert "not UTF-8" in message(table)
    h5ad = write_h5ad(tmp_path)
    with h5py.File(h5ad, "a") as file:
        names = file["var/_index"][:]
        names[0] = b"caf\xe9"
        file["var/_index"][:] = names
    assert "not UTF-8" in message(h5ad)
    h5 = write_tenx_h5(tmp_path)
    with h5py.File(h5, "a") as file:
        file["matrix/barcodes"][0] = b"\xff\xfe"
    assert "not UTF-8" in message(h5)
    folder = write_tenx_folder(tmp_path, 2)
    (folder / "barcodes.tsv").write_bytes(b"\xff\n" * CELLS)
    assert "not UTF-8" in message(folder)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros(5), "two dimensions"),
        (np.zeros((0, 5)), "is empty, 0 cells x 5 genes"),
        (np.array([["a", "b"]]), "values are of type <U1, not numbers"),
        (np.array([[1, None]], dtype=object), "Python objects in dtype"),
    ],
)
def test_bad_npy(array: np.ndarray, says: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    assert says in message(tmp_path / "a.npy")


def test_dense_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", counts=counts().toarray())
    assert "save_npz" in message(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("array", "position", "value", "says"),
    [
        ("indices", 3, GENES, f"a column index is {GENES}, outside 0..{GENES - 1}"),
        ("indices", 3, -1, "a column index is -1"),
        ("indptr", 4, 10**6, "row offsets do not fit"),
        ("indptr", 0, 1, "row offsets do not fit"),
        ("indptr", -1, 10**6, "row offsets do not fit"),
    ],
)
@pytest.mark.parametrize("form", ["h5ad", "10x"])
def test_damaged_sparse_arrays(
    form: str, array: str, position: int, value: int, says: str, tmp_path: Path
) -> None:
    path = write_h5ad(tmp_path) if form == "h5ad" else write_tenx_h5(tmp_path)
    with h5py.File(path, "a") as file:
        group = file["X" if form == "h5ad" else "matrix"]
        values = group[array][:]
        values[position] = value
        group[array][:] = values
    assert says in message(path)


def test_damaged_column_indices_of_npz(tmp_path: Path) -> None:
    matrix = sp.csc_matrix(counts())
    matrix.indices[3] = 10**6
    sp.save_npz(tmp_path / "a.npz", matrix)
    assert f"a row index is {10**6}" in message(tmp_path / "a.npz")


@pytest.mark.parametrize("form", [sp.csc_matrix, sp.coo_matrix, sp.csr_array, sp.coo_array])
def test_every_form_of_npz(form: type, tmp_path: Path) -> None:
    sp.save_npz(tmp_path / "a.npz", form(counts()))
    assert (whole(open_source(tmp_path / "a.npz")) != counts()).nnz == 0


def test_h5ad_without_its_parts(tmp_path: Path) -> None:
    path = write_h5ad(tmp_path)
    with h5py.File(path, "a") as file:
        del file["X"]
    assert "has no 'X'; it holds no matrix" in message(path)
    with h5py.File(path, "a") as file:
        file["X"] = np.ones((2, GENES))
    assert f"'X' has shape (2, {GENES}), but obs has {CELLS} rows" in message(path)
    with h5py.File(path, "a") as file:
        del file["X"]
        file.create_group("X")
    assert "/X is neither an array nor a sparse matrix" in message(path)
    with h5py.File(path, "a") as file:
        del file["var"]
    assert "has no 'var'" in message(path)


def test_h5_that_is_anndata_or_two_genomes(tmp_path: Path) -> None:
    path = write_h5ad(tmp_path).rename(tmp_path / "b.h5")
    assert "rename it to end in .h5ad" in message(path)
    path = write_tenx_h5(tmp_path, 2)
    with h5py.File(path, "a") as file:
        file.copy("GRCh38", "mm10")
    assert "several genomes (GRCh38, mm10)" in message(path)


def test_zarr_that_is_not_anndata(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "a.zarr").create_array("x", data=np.ones(3))
    assert "has no 'obs'" in message(tmp_path / "a.zarr")
    (tmp_path / "b.zarr").mkdir()
    assert "cannot be read as an AnnData .zarr folder" in message(tmp_path / "b.zarr")


def files_to_damage(folder: Path) -> list[Path]:
    """Files of a folder, but chunks of strings: numcodecs allocates as many as such a chunk says it holds."""
    strings = {"_index", "ensembl", "categories"}
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and ("json" in file.name or file.name.startswith(".") or not strings & set(file.parts))
    )


def in_string_heap(content: bytes, position: int) -> bool:
    """Whether a byte lies in one of HDF5's heaps of strings: HDF5 2.0 itself never returns from a damaged one."""
    heap = content.rfind(b"GCOL", 0, position + 4)
    return heap >= 0 and position < heap + 4096


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=st.sampled_from(sorted(EVERY)), data=st.data())
def test_flipped_bytes_never_leak_another_error(
    form: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = EVERY[form](tmp_path_factory.mktemp("flip"))
    files = files_to_damage(path) if path.is_dir() else [path]
    damaged = data.draw(st.sampled_from(files))
    content = bytearray(damaged.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(content) - 1))
        if not in_string_heap(bytes(content), position):
            content[position] ^= data.draw(st.integers(1, 255))
    damaged.write_bytes(content[: data.draw(st.sampled_from([None, 0, len(content) // 2]))])
    with contextlib.suppress(DataError):
        source = open_source(path)
        whole(source)
        assert len(source.obs) == source.n_cells


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (3, 4), (7, 23), (9, None), (20, 99), (23, None)])
@pytest.mark.parametrize("form", WRITERS)
def test_a_range_of_rows(form: str, start: int, stop: int | None, tmp_path: Path) -> None:
    source = open_source(WRITERS[form](tmp_path))
    blocks = list(source.blocks(4, start, stop))
    end = CELLS if stop is None else min(stop, CELLS)
    assert [first for first, _ in blocks] == list(range(start, end, 4))
    if blocks:
        np.testing.assert_array_equal(
            sp.vstack([block for _, block in blocks]).toarray(), counts().toarray()[start:end]
        )
