"""Alignment, checks and totals of one source, held against a dense twin."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfoundry_data.aligned_cells import BadEntryError, aligned_cells
from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.vocabulary import Vocabulary, load

VOCAB = Vocabulary(("CD3D", "MS4A1", "NKG7", "LYZ"))
Dense = npt.NDArray[np.float32]
Genes = npt.NDArray[np.int32]


def make(dense: npt.ArrayLike, genes: list[str], form: type = sp.csr_matrix) -> anndata.AnnData:
    values = np.asarray(dense, np.float32)
    obs = pd.DataFrame(index=[f"cell{row}" for row in range(len(values))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata remarks on repeated gene names, which are what is tested
        return anndata.AnnData(form(values), obs=obs, var=pd.DataFrame(index=genes))


def dense_of(batch: CellBatch, n_genes: int) -> Dense:
    dense = np.zeros((len(batch), n_genes), np.float32)
    for cell in range(len(batch)):
        entries = slice(batch.indptr[cell], batch.indptr[cell + 1])
        dense[cell, batch.gene_ids[entries]] = batch.counts[entries]
    return dense


def whole(cells: SourceCells, n_genes: int, block_cells: int = 4096) -> Dense:
    batches = [batch for batch, _ in cells.blocks(block_cells)]
    assert np.concatenate([batch.row_ids for batch in batches]).tolist() == list(range(cells.n_cells))
    return np.concatenate([dense_of(batch, n_genes) for batch in batches])


def aligned_dense_twin(dense: Dense, column_to_gene: npt.NDArray[np.int32], n_genes: int) -> Dense:
    """One cell and one column at a time: what the fast path must equal."""
    out = np.zeros((len(dense), n_genes), np.float32)
    for column, gene in enumerate(column_to_gene):
        if gene >= 0:
            out[:, gene] += dense[:, column]
    return out


@st.composite
def blocks(draw: st.DrawFn, values: st.SearchStrategy[float]) -> tuple[sp.csr_matrix, Genes, int]:
    """CSR as files may hold it (columns in any order, repeated, stored zeros) and where its columns go."""
    n_columns, n_genes = draw(st.integers(1, 9)), draw(st.sampled_from([1, 5, 64, 65, 200]))
    rows = draw(st.lists(st.lists(st.tuples(st.integers(0, n_columns - 1), values), max_size=8), max_size=6))
    if draw(st.booleans()):
        rows = [sorted(dict(row).items()) for row in rows]
    entries = [entry for row in rows for entry in row]
    block = sp.csr_matrix(
        (
            np.array([value for _, value in entries], np.float32),
            np.array([column for column, _ in entries], np.int32),
            np.cumsum([0, *(len(row) for row in rows)]),
        ),
        shape=(len(rows), n_columns),
    )
    in_order = st.lists(st.integers(0, n_genes - 1), min_size=n_columns, max_size=n_columns).map(sorted)
    genes = draw(in_order | st.lists(st.integers(-1, n_genes - 1), min_size=n_columns, max_size=n_columns))
    return block, np.array(genes, np.int32), n_genes


@settings(max_examples=300, deadline=None)  # the first call compiles
@given(blocks(st.integers(0, 5).map(float)), st.booleans())
def test_fast_path_equals_the_dense_twin(case: tuple[sp.csr_matrix, Genes, int], counts: bool) -> None:
    block, column_to_gene, n_genes = case
    batch, total = aligned_cells(block, column_to_gene, n_genes, first_row=7, counts=counts)
    np.testing.assert_array_equal(
        dense_of(batch, n_genes), aligned_dense_twin(block.toarray(), column_to_gene, n_genes)
    )
    assert total == block.data.sum()
    assert (batch.counts > 0).all()
    for cell in range(len(batch)):
        assert (np.diff(batch.gene_ids[batch.indptr[cell] : batch.indptr[cell + 1]]) > 0).all()
    assert (batch.indptr.dtype, batch.gene_ids.dtype, batch.counts.dtype) == (np.int64, np.int32, np.float32)
    assert batch.row_ids.tolist() == list(range(7, 7 + block.shape[0]))


def problem_of(value: float, counts: bool) -> str | None:
    """The rules of a value one after another: what the checks without branches must equal."""
    if value < 0:
        return "negative"
    if not np.isfinite(value):
        return "not finite"
    if counts and value != int(value):
        return "fraction"
    return "too large" if counts and value >= 2**32 else None


@settings(max_examples=300, deadline=None)  # the first call compiles
@given(
    blocks(st.sampled_from([0.0, -0.0, 1, 2**24, 4294967040, 2**32, 1.5, -1, np.nan, np.inf])), st.booleans()
)
def test_the_first_value_that_cannot_be_taken(case: tuple[sp.csr_matrix, Genes, int], counts: bool) -> None:
    block, column_to_gene, n_genes = case
    problems = [(entry, problem_of(value, counts)) for entry, value in enumerate(block.data.tolist())]
    bad = [found for found in problems if found[1]]
    sums = aligned_dense_twin(block.toarray(), column_to_gene, n_genes)
    if not bad and not (counts and (sums >= 2**32).any()):
        batch, _ = aligned_cells(block, column_to_gene, n_genes, counts=counts)
        np.testing.assert_array_equal(dense_of(batch, n_genes), sums)
        return
    with pytest.raises(BadEntryError) as error:
        aligned_cells(block, column_to_gene, n_genes, counts=counts)
    if (error.value.entry, error.value.problem) not in bad[:1]:  # then a sum of rows before is too large
        assert error.value.problem == "too large"
        row = int(np.searchsorted(block.indptr, error.value.entry, side="right")) - 1
        assert (sums[row] >= 2**32).any()


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, sp.csr_array, np.asarray])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, bool])
@pytest.mark.parametrize("block_cells", [2, 100])
def test_anndata_in_memory(form: type, dtype: type, block_cells: int) -> None:
    dense = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 1]])
    data = make(dense, ["LYZ", "unknown", "CD3D"])
    data.X = form(dense.astype(dtype))
    cells = SourceCells(data, VOCAB)
    expected = [[1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert whole(cells, 4, block_cells).tolist() == expected
    assert cells.obs_names.tolist() == ["cell0", "cell1", "cell2"]
    assert (cells.alignment.matched, cells.alignment.dropped) == (2, 1)
    np.testing.assert_array_equal(data.X.toarray() if sp.issparse(data.X) else data.X, dense)


def test_view_layer_and_raw_in_memory() -> None:
    data = make([[1, 2], [3, 4]], ["CD3D", "LYZ"])
    data.layers["twice"] = data.X * 2
    data.raw = data
    view = data[[1], ["LYZ"]]
    assert whole(SourceCells(view, VOCAB), 4).tolist() == [[0, 0, 0, 4]]
    assert whole(SourceCells(view, VOCAB, layer="twice"), 4).tolist() == [[0, 0, 0, 8]]
    assert whole(SourceCells(view, VOCAB, layer="raw"), 4).tolist() == [[3, 0, 0, 4]]
    with pytest.raises(DataError, match="has no 'layers/thrice'; it holds X, raw, layers/twice"):
        SourceCells(data, VOCAB, layer="thrice")
    data.raw = None
    with pytest.raises(DataError, match="has no 'raw'; it holds X, layers/twice"):
        SourceCells(data, VOCAB, layer="raw")


def test_backed_anndata(tmp_path: Path) -> None:
    make([[1, 2], [3, 4]], ["CD3D", "LYZ"]).write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert whole(SourceCells(backed, VOCAB), 4, 1).tolist() == [[1, 0, 0, 2], [3, 0, 0, 4]]
    backed.file.close()


def test_repeated_genes_are_summed_with_one_warning() -> None:
    data = make([[1, 2, 4, 8]], ["CD3D", "ENSG00000167286.3", "LYZ", "CD3D"])
    with pytest.warns(UserWarning, match=r"AnnData: 2 gene columns repeat a gene .* summed") as caught:
        cells = SourceCells(data, VOCAB)
    assert len(caught) == 1
    assert whole(cells, 4).tolist() == [[11, 0, 0, 4]]


# --- checks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (-1, "kang.h5ad: row 12 (cell12), gene CD3D has the value -1; counts cannot be negative."),
        (np.nan, "kang.h5ad: row 12 (cell12), gene CD3D has the value nan; values must be finite."),
        (np.inf, "kang.h5ad: row 12 (cell12), gene CD3D has the value inf; values must be finite."),
        (-np.inf, "kang.h5ad: row 12 (cell12), gene CD3D has the value -inf; counts cannot be negative."),
        (
            1.37,
            "kang.h5ad: the values look already normalised (row 12 (cell12), gene CD3D = 1.37); give "
            "raw counts (--layer names another matrix of the file), or take the values as they are: "
            "`embed --pre-normalized T` where they are log-normalised, `data ingest --values float32`.",
        ),
    ],
)
@pytest.mark.parametrize("block_cells", [1, 5, 4096])
def test_bad_value_is_named(value: float, says: str, block_cells: int, tmp_path: Path) -> None:
    dense = np.ones((20, 3), np.float32)
    dense[12, 1] = value
    make(dense, ["LYZ", "CD3D", "NKG7"]).write_h5ad(tmp_path / "kang.h5ad")
    with pytest.raises(DataError) as error:
        whole(SourceCells(tmp_path / "kang.h5ad", VOCAB), 4, block_cells)
    assert str(error.value) == says


def test_normalized_values_pass_as_they_are() -> None:
    dense = np.array([[0.5, 0], [1.25, 3]], np.float32)
    cells = SourceCells(make(dense, ["CD3D", "LYZ"]), VOCAB, values="normalized")
    assert whole(cells, 4).tolist() == [[0.5, 0, 0, 0], [1.25, 0, 0, 3]]
    with pytest.raises(DataError, match="counts cannot be negative"):
        whole(SourceCells(make(-dense, ["CD3D", "LYZ"]), VOCAB, values="normalized"), 4)


def test_values_beyond_float32_are_refused() -> None:
    data = make([[1]], ["LYZ"])
    data.X = np.array([[1e300]])
    with pytest.raises(DataError, match="has the value inf"):
        whole(SourceCells(data, VOCAB), 4)


def test_no_common_gene_names_the_file(tmp_path: Path) -> None:
    make([[1, 2]], ["gene1", "gene2"]).write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(DataError, match=r"x\.h5ad: 0 of 2 gene columns match"):
        SourceCells(tmp_path / "x.h5ad", VOCAB)


def test_a_known_alignment_is_taken_as_it_is(tmp_path: Path) -> None:
    vocab = Vocabulary(("A", "B", "C"))
    make([[1, 2, 3]], ["C", "other", "A"]).write_h5ad(tmp_path / "a.h5ad")
    make([[1, 2]], ["C", "A"]).write_h5ad(tmp_path / "b.h5ad")
    found = SourceCells(tmp_path / "a.h5ad", vocab).alignment
    again = SourceCells(tmp_path / "a.h5ad", vocab, alignment=found)
    assert whole(again, 3).tolist() == [[3, 0, 1]]
    with pytest.raises(
        DataError, match=r"b\.h5ad: was changed since it was opened; run the same command again"
    ):
        SourceCells(tmp_path / "b.h5ad", vocab, alignment=found)


@pytest.mark.parametrize("corner", ["CD3D", "ENSG00000167286"])
def test_a_table_without_cell_names_is_refused(corner: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"{corner},LYZ,NKG7\n5,1,2\n6,3,4\n")
    with pytest.raises(DataError, match=rf"x\.csv: its first column is gene {corner}, .* with its row names"):
        SourceCells(tmp_path / "x.csv", VOCAB)


def test_a_transposed_matrix_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(",cell0,cell1\nLYZ,1,2\nCD3D,0,5\n")
    with pytest.raises(
        DataError, match=r"0 of 2 gene columns .* named after genes \(LYZ, CD3D\), so transpose"
    ):
        SourceCells(tmp_path / "x.csv", VOCAB)


def test_empty_anndata() -> None:
    with pytest.raises(DataError, match="is empty, 0 cells x 1 genes"):
        SourceCells(make(np.zeros((0, 1)), ["LYZ"]), VOCAB)


# --- totals and arrays without names ---------------------------------------------------------------------


def test_last_column_becomes_the_totals(tmp_path: Path) -> None:
    dense = np.array([[0.5, 1, 1000], [0, 2, 5.5]], np.float32)
    np.save(tmp_path / "x.npy", np.pad(dense, ((0, 0), (2, 0))))
    (tmp_path / "x.csv").write_text(",NKG7,LYZ,total\nc0,0.5,1,1000\nc1,0,2,5.5\n")
    for source in (make(dense, ["NKG7", "LYZ", "total"]), tmp_path / "x.csv", tmp_path / "x.npy"):
        cells = SourceCells(source, VOCAB, values="normalized", total_column=True)
        batches = list(cells.blocks(1))
        totals = [total for _, total in batches if total is not None]
        assert np.concatenate(totals).tolist() == [1000, 5.5]
        assert [dense_of(batch, 4).tolist() for batch, _ in batches] == [[[0, 0, 0.5, 1]], [[0, 0, 0, 2]]]


def test_bad_totals() -> None:
    with pytest.raises(DataError, match=r"its last column is gene LYZ, but with --pre-normalized A"):
        SourceCells(make([[1, 2]], ["CD3D", "LYZ"]), VOCAB, total_column=True)
    cells = SourceCells(make([[1, 2], [1, -3]], ["CD3D", "total"]), VOCAB, total_column=True)
    with pytest.raises(DataError, match=r"row 1 \(cell1\) has the total count -3 in its last column"):
        list(cells.blocks())


@pytest.mark.parametrize(
    ("columns", "total_column", "fits"),
    [(4, False, True), (5, True, True), (5, False, False), (4, True, False), (3, False, False)],
)
def test_arrays_must_have_the_vocabulary_as_columns(
    columns: int, total_column: bool, fits: bool, tmp_path: Path
) -> None:
    dense = np.arange(2 * columns).reshape(2, columns)
    np.save(tmp_path / "x.npy", dense)
    sp.save_npz(tmp_path / "x.npz", sp.csr_matrix(dense))
    for path in (tmp_path / "x.npy", tmp_path / "x.npz"):
        if fits:
            np.testing.assert_array_equal(
                whole(SourceCells(path, VOCAB, total_column=total_column), 4), dense[:, :4]
            )
        else:
            with pytest.raises(DataError, match=f"has {columns} columns, but .* the vocabulary's 4 genes"):
                SourceCells(path, VOCAB, total_column=total_column)


def test_bad_value_of_an_array_without_names(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[0, 0, 0, 0], [0, 0, -2, 0]]))
    with pytest.raises(DataError, match=r"x\.npy: row 1 \(1\), gene NKG7 has the value -2"):
        whole(SourceCells(tmp_path / "x.npy", VOCAB), 4)


# --- real data -------------------------------------------------------------------------------------------


def test_bundled_donor_keeps_its_counts(baron_h5ad: Path) -> None:
    vocab = load("scfoundation")
    cells = SourceCells(baron_h5ad, vocab)
    original = anndata.read_h5ad(baron_h5ad)
    kept = original[:, cells.alignment.column_to_gene >= 0].X
    batches = [batch for batch, _ in cells.blocks(500)]
    np.testing.assert_array_equal(
        np.concatenate([batch.totals() for batch in batches]),
        np.asarray(kept.sum(axis=1, dtype=np.float64)).ravel(),
    )
    assert sum(batch.nnz for batch in batches) == kept.nnz
    assert cells.obs["cell_type"].equals(original.obs["cell_type"])


def test_reference_cells_as_text(shared: Path) -> None:
    cells = SourceCells(shared / "parity" / "baron_10cells.csv", load("scfoundation"))
    table = pd.read_csv(shared / "parity" / "baron_10cells.csv", index_col=0)
    np.testing.assert_array_equal(whole(cells, 19_264), table.to_numpy(np.float32))
    assert cells.obs_names.tolist() == table.index.tolist()


@pytest.mark.filterwarnings("ignore:.*repeat a gene:UserWarning")
@pytest.mark.parametrize("file", ["pbmc3k", "immune_559", "tapseq_k562"])
def test_real_files_keep_their_counts(file: str, shared: Path) -> None:
    path = shared / "data" / f"{file}.h5ad"
    cells = SourceCells(path, load("scfoundation"))
    kept = cells.alignment.column_to_gene >= 0
    total = sum(batch.totals().sum() for batch, _ in cells.blocks(1000))
    assert total == anndata.read_h5ad(path).X[:, kept].sum(dtype=np.float64)


# --- which matrix ----------------------------------------------------------------------------------------

COUNTS = np.array([[3, 0], [0, 5]], np.float32)
NORMALISED = COUNTS / 3


def with_matrices(
    x: npt.ArrayLike, raw: npt.ArrayLike | None = None, **layers: npt.ArrayLike
) -> anndata.AnnData:
    data = make(x, ["CD3D", "LYZ"])
    if raw is not None:
        data.raw = make(raw, ["CD3D", "LYZ"])
    for name, layer in layers.items():
        data.layers[name] = sp.csr_matrix(np.asarray(layer, np.float32))
    return data


def as_source(data: anndata.AnnData, form: str, folder: Path) -> anndata.AnnData | Path:
    if form == "memory":
        return data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.write_h5ad(folder / "a.h5ad") if form == "h5ad" else data.write_zarr(folder / "a.zarr")
    return folder / f"a.{form}"


@pytest.mark.parametrize("form", ["memory", "h5ad", "zarr"])
@pytest.mark.parametrize(
    ("data", "chosen"),
    [
        (with_matrices(COUNTS, raw=COUNTS, counts=COUNTS), "X"),
        (with_matrices(NORMALISED, raw=COUNTS, counts=COUNTS, a=COUNTS), "layers/counts"),
        (with_matrices(NORMALISED, raw=COUNTS, counts=NORMALISED, a=COUNTS), "raw"),
        (with_matrices(NORMALISED, raw=NORMALISED, b=COUNTS, c=COUNTS), "layers/b"),
        (with_matrices(-COUNTS, b=COUNTS), "layers/b"),
        (with_matrices(NORMALISED, b=NORMALISED), "X"),
    ],
)
def test_the_first_matrix_of_whole_numbers(
    data: anndata.AnnData, chosen: str, form: str, tmp_path: Path
) -> None:
    source = as_source(data, form, tmp_path)
    if chosen == "X":
        assert SourceCells(source, VOCAB).matrix_name == "X"
        return
    with pytest.warns(
        UserWarning, match=f"reads {chosen}, the first of its matrices that holds whole numbers"
    ):
        cells = SourceCells(source, VOCAB)
    assert cells.matrix_name == chosen
    assert whole(cells, 4).tolist() == [[3, 0, 0, 0], [0, 0, 0, 5]]
    assert SourceCells(source, VOCAB, layer=chosen).matrix_name == chosen  # as it was printed
    assert SourceCells(source, VOCAB, layer="X").matrix_name == "X"
    assert SourceCells(source, VOCAB, values="normalized").matrix_name == "X"


def test_cells_far_from_the_head_are_looked_at(tmp_path: Path) -> None:
    dense = np.ones((20_000, 2), np.float32)
    layer = dense.copy()
    dense[10_000:] = 0.5
    data = with_matrices(dense, counts=layer)
    for form in ("memory", "h5ad"):
        with pytest.warns(UserWarning, match="reads layers/counts"):
            SourceCells(as_source(data, form, tmp_path), VOCAB)


def test_x_of_a_format_without_layers(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(",CD3D,LYZ\nc0,0.5,1\n")
    cells = SourceCells(tmp_path / "x.csv", VOCAB, values="normalized")
    assert (cells.format, cells.matrix_name, cells.row_access) == ("table", "X", False)


def test_counts_from_two_to_the_32_are_refused() -> None:
    data = make([[1, 2**32 - 2**8]], ["CD3D", "LYZ"])
    assert whole(SourceCells(data, VOCAB), 4).tolist() == [[1, 0, 0, 2**32 - 2**8]]
    with pytest.raises(
        DataError, match=r"row 0 \(cell0\), gene LYZ has the value 4.29497e\+09; .* 4,294,967,296\."
    ):
        whole(SourceCells(make([[1, 2**32]], ["CD3D", "LYZ"]), VOCAB), 4)
