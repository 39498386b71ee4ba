"""Malformed matrices of every format: a clear error, or the same matrix as a slow reference gives."""

from __future__ import annotations

import csv
import gzip
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import zarr
from anndata.io import write_elem
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfoundry_data.errors import DataError
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.vocabulary import Vocabulary

GENES = tuple(f"GENE{column}" for column in range(6))
VOCAB = Vocabulary(GENES)
DTYPES = [np.float32, np.float64, np.int64, np.int32, np.uint16, np.uint8]
FRACTIONS = [0.5, -1.0, np.nan, np.inf, 1e-30]
LARGE = [70_000, 2**24 - 1, 2**31, 2**32 - 2**8, 2**32, 2**40]


@dataclass
class Compressed:
    """A CSR or CSC triple as a file may hold it; ``majors`` rows of CSR, columns of CSC."""

    data: npt.NDArray[Any]
    indices: npt.NDArray[Any]
    indptr: npt.NDArray[Any]
    majors: int
    minors: int

    def entries(self) -> list[tuple[int, int, float]] | None:
        """(major, minor, value) of each entry, or None where the triple is unsound."""
        offsets = self.indptr.tolist()
        sound = (
            len(offsets) == self.majors + 1
            and offsets[0] == 0
            and all(low <= high for low, high in pairwise(offsets))
            and offsets[-1] <= min(len(self.data), len(self.indices))
            and all(0 <= minor < self.minors for minor in self.indices[: offsets[-1]].tolist())
        )
        if not sound:
            return None
        majors = [major for major in range(self.majors) for _ in range(offsets[major], offsets[major + 1])]
        return list(zip(majors, self.indices.tolist(), self.data.tolist(), strict=False))


def reference(entries: list[tuple[int, int, float]] | None, n_cells: int) -> npt.NDArray[np.float32] | None:
    """Counts added one at a time; None where an entry is no count."""
    if entries is None or not n_cells:
        return None
    dense = np.zeros((n_cells, len(GENES)))
    for cell, gene, value in entries:
        if not (0 <= np.float32(value) < 2**32 and value == int(value)):
            return None
        dense[cell, gene] += np.float32(value)
    return None if (dense >= 2**32).any() else dense.astype(np.float32)


@st.composite
def values(draw: st.DrawFn, size: int, odd: bool) -> npt.NDArray[Any]:
    """Counts of some type; with ``odd`` a few that are large or no counts."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    array = np.array(draw(st.lists(st.integers(0, 200), min_size=size, max_size=size)), dtype)
    if odd and size:
        possible: list[float] = [*LARGE, *FRACTIONS] if dtype.kind == "f" else []
        if dtype.kind != "f":
            limits = np.iinfo(str(dtype))
            possible = [value for value in [*LARGE, -1] if limits.min <= value <= limits.max]
        if possible:
            array[draw(st.integers(0, size - 1))] = draw(st.sampled_from(possible))
    return array


@st.composite
def compressed(draw: st.DrawFn, cells_major: bool) -> Compressed:
    """Any triple, often sound, unsorted and with repeats; else with one thing wrong."""
    n_cells = draw(st.integers(1, 5))
    majors, minors = (n_cells, len(GENES)) if cells_major else (len(GENES), n_cells)
    lengths = draw(st.lists(st.integers(0, 5), min_size=majors, max_size=majors))
    size = sum(lengths)
    indices = np.array(
        draw(st.lists(st.integers(0, minors - 1), min_size=size, max_size=size)),
        draw(st.sampled_from([np.int32, np.int64, np.uint32, np.uint8, np.uint64])),
    )
    indptr = np.cumsum([0, *lengths]).astype(draw(st.sampled_from([np.int32, np.int64, np.uint64])))
    wrong = draw(st.sampled_from(["nothing", "nothing", "value", "index", "offset", "short", "long", "rows"]))
    data = draw(values(size, wrong == "value"))
    if wrong == "index" and size:
        indices[draw(st.integers(0, size - 1))] = draw(st.sampled_from([minors, minors + 1, 100]))
    if wrong == "offset":
        indptr[draw(st.integers(0, majors))] = draw(st.sampled_from([0, 1, size, size + 1, 2**31 - 1]))
    if wrong == "short":
        cut = draw(st.integers(0, size))
        data, indices = (data[:cut], indices) if draw(st.booleans()) else (data, indices[:cut])
    if wrong == "long":
        data, indices = np.append(data, data[:1]), np.append(indices, indices[:1])
    if wrong == "rows":
        indptr = draw(st.sampled_from([indptr[:-1], np.append(indptr, indptr[-1:]), indptr[:0]]))
    return Compressed(data, indices, indptr, majors, minors)


def write_anndata(root: h5py.Group | zarr.Group, n_cells: int, matrix: Compressed, encoding: str) -> None:
    write_elem(root, "obs", pd.DataFrame(index=[f"c{row}" for row in range(n_cells)]))
    write_elem(root, "var", pd.DataFrame(index=list(GENES)))
    group = root.create_group("X")
    group.attrs.update({"encoding-type": f"{encoding}_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = [n_cells, len(GENES)]
    for name in ("data", "indices", "indptr"):
        array = getattr(matrix, name)
        if isinstance(group, h5py.Group):
            group[name] = array
        else:
            group.create_array(
                name, data=array, chunks=(max(1, len(array)),), config={"write_empty_chunks": True}
            )


def write_h5ad(folder: Path, n_cells: int, matrix: Compressed, encoding: str) -> Path:
    with h5py.File(folder / "a.h5ad", "w") as file:
        write_anndata(file, n_cells, matrix, encoding)
    return folder / "a.h5ad"


def write_zarr(folder: Path, n_cells: int, matrix: Compressed, encoding: str) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # strings of Zarr 3 are called unstable
        write_anndata(zarr.open_group(folder / "a.zarr", mode="w"), n_cells, matrix, encoding)
    return folder / "a.zarr"


def write_npz(folder: Path, n_cells: int, matrix: Compressed, encoding: str) -> Path:
    parts = {name: getattr(matrix, name) for name in ("data", "indices", "indptr")}
    np.savez(folder / "a.npz", format=encoding.encode(), shape=np.array([n_cells, len(GENES)]), **parts)
    return folder / "a.npz"


def write_tenx(folder: Path, n_cells: int, matrix: Compressed, encoding: str) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = [len(GENES), n_cells]
        group["barcodes"] = np.array([f"c{row}" for row in range(n_cells)], "S")
        group["features/id"] = group["features/name"] = np.array(GENES, "S")
        group["features/feature_type"] = np.array(["Gene Expression"] * len(GENES), "S")
    return folder / "a.h5"


def read(path: Path, block_cells: int) -> npt.NDArray[np.float32]:
    """All counts of a source; whatever it raises must be one sentence of a DataError."""
    try:
        cells = SourceCells(path, VOCAB)
        dense = np.zeros((cells.n_cells, len(GENES)), np.float32)
        for batch, _ in cells.blocks(block_cells):
            rows = np.repeat(batch.row_ids, np.diff(batch.indptr))
            dense[rows, batch.gene_ids] = batch.counts
    except DataError as error:
        text = str(error)
        assert path.name in text
        assert text.endswith(".")
        assert "\n" not in text
        raise
    return dense


def check(path: Path, expected: npt.NDArray[np.float32] | None, block_cells: int) -> None:
    if expected is None:
        with pytest.raises(DataError):
            read(path, block_cells)
    else:
        np.testing.assert_array_equal(read(path, block_cells), expected)


Writer = Callable[[Path, int, Compressed, str], Path]
COMPRESSED: dict[str, tuple[Writer, str]] = {
    "h5ad csr": (write_h5ad, "csr"),
    "h5ad csc": (write_h5ad, "csc"),
    "zarr csr": (write_zarr, "csr"),
    "zarr csc": (write_zarr, "csc"),
    "npz csr": (write_npz, "csr"),
    "npz csc": (write_npz, "csc"),
    "10x h5": (write_tenx, "csr"),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few entries are several pieces."""
    for module in ("matrix", "npz", "parquet"):
        monkeypatch.setattr(f"cellfoundry_data.readers.{module}.PIECE_ENTRIES", 3)
    monkeypatch.setattr("cellfoundry_data.readers.unordered.MIN_RANGE_ROWS", 2)
    monkeypatch.setattr("cellfoundry_data.readers.mtx_text.PIECE_BYTES", 16)


fuzz = settings(max_examples=100, deadline=None)


@pytest.mark.parametrize("form", COMPRESSED)
def test_compressed_matrices(form: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    write, encoding = COMPRESSED[form]

    @settings(max_examples=25 if form.startswith("zarr") else 100, deadline=None)  # 50 ms to write a .zarr
    @given(compressed(encoding == "csr"), st.sampled_from([1, 2, 100]))
    def check_one(matrix: Compressed, block_cells: int) -> None:
        entries = matrix.entries()
        n_cells = matrix.majors if encoding == "csr" else matrix.minors
        if encoding == "csc" and entries is not None:
            entries = [(cell, gene, value) for gene, cell, value in entries]
        path = write(tmp_path_factory.mktemp("fuzz"), n_cells, matrix, encoding)
        check(path, reference(entries, n_cells), block_cells)

    check_one()


@st.composite
def coordinates(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], npt.NDArray[Any], bool]:
    """Cells, (cell, gene) of entries in any order and repeated, their values, and whether all are inside."""
    n_cells = draw(st.integers(1, 5))
    places = draw(st.lists(st.tuples(st.integers(0, n_cells - 1), st.integers(0, 5)), max_size=12))
    odd = draw(st.sampled_from(["nothing", "nothing", "value", "place"]))
    inside = odd != "place" or not places
    if not inside:
        at = draw(st.integers(0, len(places) - 1))
        places[at] = draw(st.sampled_from([(n_cells, 0), (0, 6), (-1, 0), (0, -1), (2**31, 2**31)]))
    return n_cells, places, draw(values(len(places), odd == "value")), inside


@fuzz
@given(coordinates(), st.sampled_from([1, 2, 100]))
def test_npz_of_coordinates(tmp_path_factory: pytest.TempPathFactory, case: Any, block_cells: int) -> None:
    n_cells, places, counts, inside = case
    rows, columns = (np.array([place[axis] for place in places], np.int64) for axis in (0, 1))
    path = tmp_path_factory.mktemp("fuzz") / "a.npz"
    shape = np.array([n_cells, len(GENES)])
    np.savez(path, format=b"coo", shape=shape, row=rows, col=columns, data=counts)
    entries = (
        [(*place, value) for place, value in zip(places, counts.tolist(), strict=True)] if inside else None
    )
    check(path, reference(entries, n_cells), block_cells)


@fuzz
@given(
    coordinates(),
    st.sampled_from([1, 2, 100]),
    st.sampled_from(
        [
            "",
            "",
            "",
            "1 1\n",
            "1 x 3\n",
            "1 1 1 1\n",
            "1.5 1 1\n",
            "% no\n",
            "1 1 1e\n",
            "\xff\n",
            "1 1 nan\n",
        ]
    ),
    st.sampled_from([" ", "\t", "  "]),
    st.sampled_from(["\n", "\r\n", "\n\n", " \n"]),
    st.booleans(),
)
def test_matrix_market_text(
    tmp_path_factory: pytest.TempPathFactory,
    case: Any,
    block_cells: int,
    bad_line: str,
    gap: str,
    end: str,
    more: bool,
) -> None:
    n_cells, places, counts, inside = case
    lines = [
        gap.join((str(gene + 1), str(cell + 1), repr(value))) + end
        for (cell, gene), value in zip(places, counts.tolist(), strict=True)
    ]
    folder = tmp_path_factory.mktemp("fuzz") / "mtx"
    folder.mkdir()
    head = f"%%MatrixMarket matrix coordinate real general\n% a remark\n6 {n_cells} {len(lines) + more}\n"
    (folder / "matrix.mtx").write_text(head + "".join(lines) + bad_line, encoding="latin-1")
    (folder / "genes.tsv").write_text("".join(f"{gene}\t{gene}\n" for gene in GENES))
    (folder / "barcodes.tsv").write_text("".join(f"c{row}\n" for row in range(n_cells)))
    entries = [(*place, value) for place, value in zip(places, counts.tolist(), strict=True)]
    sound = inside and not bad_line and not more
    check(folder, reference(entries, n_cells) if sound else None, block_cells)


@fuzz
@given(coordinates(), st.sampled_from([1, 2, 100]), st.booleans())
def test_parquet(
    tmp_path_factory: pytest.TempPathFactory, case: Any, block_cells: int, dictionary: bool
) -> None:
    _, places, counts, inside = case
    if not inside:
        return
    cells = [f"c{cell}" for cell, _ in places]
    table = pa.table({"cell": cells, "gene": [GENES[gene] for _, gene in places], "count": pa.array(counts)})
    path = tmp_path_factory.mktemp("fuzz") / "a.parquet"
    pq.write_table(table, path, row_group_size=4, use_dictionary=dictionary)
    order = {name: row for row, name in enumerate(dict.fromkeys(cells))}
    entries = [
        (order[cell], gene, value)
        for cell, (_, gene), value in zip(cells, places, counts.tolist(), strict=True)
    ]
    check(path, reference(entries, len(order)), block_cells)


TABLE_FAULTS: dict[str, Callable[[list[list[str]]], object]] = {
    "a value too many": lambda rows: rows[-1].append("1"),
    "a value too few": lambda rows: rows[-1].pop(),
    "no number": lambda rows: rows[-1].__setitem__(-1, "many"),
    "nothing": lambda rows: rows[-1].__setitem__(-1, ""),
    "a gene too many": lambda rows: rows[0].append("GENE6"),
    "two genes too few": lambda rows: (rows[0].pop(), rows[0].pop()),
    "no genes": lambda rows: rows[0].__delitem__(slice(1, None)),
}


@fuzz
@given(
    coordinates(),
    st.sampled_from([1, 2, 100]),
    st.sampled_from([".csv", ".tsv", ".csv.gz", ".tsv.gz"]),
    st.sampled_from([None, "", "cell", "barcode"]),
    st.sampled_from(["c", "a b", "c,\t", 'c "x" ', "\u00e9\u6f22"]),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.sampled_from([None, None, *TABLE_FAULTS]),
)
def test_tables(
    tmp_path_factory: pytest.TempPathFactory,
    case: Any,
    block_cells: int,
    suffix: str,
    corner: str | None,
    name: str,
    end: str,
    fault: str | None,
) -> None:
    n_cells, places, counts, inside = case
    if not inside:
        return
    matrix = np.zeros((n_cells, len(GENES)))
    for (cell, gene), value in zip(places, counts.tolist(), strict=True):
        matrix[cell, gene] = value
    rows = [
        [*([] if corner is None else [corner]), *GENES],
        *([f"{name}{cell}", *map(repr, line)] for cell, line in enumerate(matrix.tolist())),
    ]
    if fault:
        TABLE_FAULTS[fault](rows)
    text = io.StringIO()
    csv.writer(text, delimiter="," if "csv" in suffix else "\t", lineterminator=end).writerows(rows)
    path = tmp_path_factory.mktemp("fuzz") / f"a{suffix}"
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    entries = [
        (cell, gene, value)
        for cell, line in enumerate(matrix.tolist())
        for gene, value in enumerate(line)
        if value or value != value
    ]
    check(path, None if fault else reference(entries, n_cells), block_cells)


@st.composite
def dense(draw: st.DrawFn) -> npt.NDArray[Any]:
    n_cells = draw(st.integers(1, 5))
    return draw(values(n_cells * 6, draw(st.booleans()))).reshape(n_cells, 6)


def write_dense_h5ad(folder: Path, matrix: npt.NDArray[Any]) -> Path:
    with h5py.File(folder / "a.h5ad", "w") as file:
        write_elem(file, "obs", pd.DataFrame(index=[f"c{row}" for row in range(len(matrix))]))
        write_elem(file, "var", pd.DataFrame(index=list(GENES)))
        file.create_dataset("X", data=matrix, chunks=(1, 4))
    return folder / "a.h5ad"


def write_loom(folder: Path, matrix: npt.NDArray[Any], chunks: tuple[int, int]) -> Path:
    with h5py.File(folder / "a.loom", "w") as file:
        file.create_dataset("matrix", data=matrix.T, chunks=chunks)
        file["row_attrs/Gene"] = np.array(GENES, "S")
        file["col_attrs/CellID"] = np.array([f"c{row}" for row in range(len(matrix))], "S")
    return folder / "a.loom"


def write_npy(folder: Path, matrix: npt.NDArray[Any]) -> Path:
    np.save(folder / "a.npy", matrix)
    return folder / "a.npy"


def write_csv(folder: Path, matrix: npt.NDArray[Any]) -> Path:
    rows = [f"c{row}," + ",".join(map(repr, line)) for row, line in enumerate(matrix.tolist())]
    (folder / "a.csv").write_text("\n".join([f"cell,{','.join(GENES)}", *rows, ""]))
    return folder / "a.csv"


DENSE: dict[str, Callable[[Path, npt.NDArray[Any]], Path]] = {
    "h5ad": write_dense_h5ad,
    "loom": lambda folder, matrix: write_loom(folder, matrix, (2, 1)),
    "npy": write_npy,
    "npy by gene": lambda folder, matrix: write_npy(folder, np.asfortranarray(matrix)),
    "csv": write_csv,
}


@pytest.mark.parametrize("form", DENSE)
def test_dense_matrices(form: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    @settings(max_examples=60, deadline=None)
    @given(dense(), st.sampled_from([1, 2, 100]))
    def check_one(matrix: npt.NDArray[Any], block_cells: int) -> None:
        entries = [(*place, matrix[place].item()) for place in np.ndindex(*matrix.shape)]
        path = DENSE[form](tmp_path_factory.mktemp("fuzz"), matrix)
        check(path, reference(entries, len(matrix)), block_cells)

    check_one()


# --- headers that claim more than there is ---------------------------------------------------------------


def claimed(path: Path, array: str, size: int) -> None:
    """An array of an .h5ad file that says it has ``size`` elements, of which none is stored."""
    with h5py.File(path, "a") as file:
        attributes = dict(file[array].attrs)
        kind = file[array].dtype
        del file[array]
        file.create_dataset(array, shape=(size,), dtype=kind, chunks=(2**16,))
        file[array].attrs.update(attributes)


@pytest.mark.parametrize("encoding", ["csr", "csc"])
@pytest.mark.parametrize("arrays", [["X/data", "X/indices"], ["X/indptr"], ["obs/_index"], ["var/_index"]])
def test_billions_that_are_not_there(encoding: str, arrays: list[str], tmp_path: Path) -> None:
    sound = Compressed(np.ones(2), np.array([0, 1]), np.array([0, 1, 2, 2, 2, 2, 2]), 6, 6)
    path = write_h5ad(tmp_path, 6, sound, encoding)
    for array in arrays:
        claimed(path, array, 2**33)
    with h5py.File(path, "a") as file:
        if arrays == ["X/data", "X/indices"]:
            file["X/indptr"][6] = 2**33
        if arrays != ["X/data", "X/indices"]:
            file["X"].attrs["shape"] = [2**33 - 1] * 2
    with pytest.raises(DataError):
        read(path, 100)


def test_a_row_of_billions_in_one_chunk(tmp_path: Path) -> None:
    sound = Compressed(np.ones(2), np.array([0, 1]), np.array([0, 1, 2]), 2, 6)
    path = write_h5ad(tmp_path, 2, sound, "csr")
    with h5py.File(path, "a") as file:
        for array in ("data", "indices"):
            del file["X"][array]
            file["X"].create_dataset(array, shape=(2**32,), dtype=np.int32, chunks=(2**16,))[:2] = 1
        file["X/indptr"][2] = 2**32
    with pytest.raises(DataError, match=r"one row claims 4,294,967,295 entries in 6 columns"):
        read(path, 100)


@pytest.mark.parametrize("shape", [(2**40, 6), (2**62, 6), (-1, 6), (6, 2**40), (0, 6)])
def test_npz_whose_shape_is_a_lie(shape: tuple[int, int], tmp_path: Path) -> None:
    places = np.zeros(2, np.int64)
    np.savez(tmp_path / "a.npz", format=b"coo", shape=np.array(shape), row=places, col=places, data=places)
    with pytest.raises(DataError):
        read(tmp_path / "a.npz", 100)


@pytest.mark.parametrize("sizes", ["6 2 99999999999", "6 99999999999 2", "6 2", "a b c", "-6 2 2", "6 2 2.5"])
def test_matrix_market_header_that_is_a_lie(sizes: str, tmp_path: Path) -> None:
    folder = tmp_path / "mtx"
    folder.mkdir()
    (folder / "matrix.mtx").write_text(
        f"%%MatrixMarket matrix coordinate integer general\n{sizes}\n1 1 1\n2 2 2\n"
    )
    (folder / "genes.tsv").write_text("".join(f"{gene}\t{gene}\n" for gene in GENES))
    (folder / "barcodes.tsv").write_text("c0\nc1\n")
    with pytest.raises(DataError):
        read(folder, 100)


# --- chunks that are lost --------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("encoding", ["csr", "csc"])
def test_a_lost_chunk_is_no_zero(encoding: str, zarr_format: Literal[2, 3], tmp_path: Path) -> None:
    """Every chunk file of the matrix and of the names, removed one at a time."""
    dense = np.arange(1, 61).reshape(10, 6)
    matrix = (sp.csr_matrix if encoding == "csr" else sp.csc_matrix)(dense)
    path = tmp_path / "a.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
        for name, names in (("obs", [f"c{row}" for row in range(10)]), ("var", list(GENES))):
            write_elem(root, name, pd.DataFrame(index=names))
        write_elem(root, "X", matrix, dataset_kwargs={"chunks": (4,)})
    np.testing.assert_array_equal(read(path, 4), dense)
    lost = [
        file
        for place in ("X", "obs/_index", "var/_index")
        for file in sorted((path / place).rglob("*"))
        if file.is_file() and not file.name.startswith(".") and file.name != "zarr.json"
    ]
    assert len(lost) > 30
    for file in lost:
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(DataError):
            SourceCells(path, VOCAB).obs_rows(0, 10), read(path, 4)
        file.write_bytes(content)
    np.testing.assert_array_equal(read(path, 4), dense)


def test_zeros_that_a_zarr_writer_leaves_out(tmp_path: Path) -> None:
    """A matrix without counts, and one whose counts are all in the first column."""
    for matrix in (
        np.zeros((9, 6)),
        np.pad(np.ones((9, 1)), ((0, 0), (0, 5))),
        np.pad(np.eye(3), ((0, 6), (0, 3))),
    ):
        path = tmp_path / f"{matrix.sum():.0f}.zarr"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            root = zarr.open_group(path, mode="w")
            write_elem(root, "obs", pd.DataFrame(index=[f"c{row}" for row in range(9)]))
            write_elem(root, "var", pd.DataFrame(index=list(GENES)))
            write_elem(root, "X", matrix, dataset_kwargs={"chunks": (9, 1)})
        if matrix.any():
            np.testing.assert_array_equal(read(path, 4), matrix)
        else:
            with pytest.raises(DataError, match="chunk 0 of /X is missing"):
                read(path, 4)
