"""The shipped vocabulary, vocabulary files, and the alignment of gene names."""

from __future__ import annotations

import string
from pathlib import Path

import anndata
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfoundry_data.errors import DataError
from cellfoundry_data.vocabulary import Vocabulary, align, load

SCFOUNDATION_HASH = "6037e1bc9b3b48a5112ffdc29261383f747a3c3f8b568a8899b0c69d13565df8"
gene_names = st.text(string.ascii_letters + string.digits + "-.@_", min_size=1).map(lambda name: "G" + name)


def test_shipped_vocabulary_is_pinned() -> None:
    vocab = Vocabulary.named("scfoundation")
    assert len(vocab) == 19_264
    assert vocab.genes[:2] == ("A1BG", "A1CF")
    assert vocab.genes[-1] == "ZZZ3"
    assert vocab.hash == SCFOUNDATION_HASH


def test_shipped_vocabulary_writes_the_published_file(shared: Path, tmp_path: Path) -> None:
    load("scfoundation").write_tsv(tmp_path / "vocab.tsv")
    published = (shared / "parity" / "OS_scRNA_gene_index.19264.tsv").read_bytes()
    assert (tmp_path / "vocab.tsv").read_bytes() == published


@given(genes=st.lists(gene_names, min_size=1, unique=True))
def test_written_vocabulary_reads_back(genes: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("vocab") / "vocab.tsv"
    vocab = Vocabulary(tuple(genes))
    vocab.write_tsv(path)
    assert load(path) == vocab
    assert load(path).hash == vocab.hash


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.txt", "CD3D\nMS4A1\n"),
        ("header.csv", "id,symbol\n1,CD3D\n2,MS4A1\n"),
        ("crlf.tsv", "\ufeffgene\tindex\r\nCD3D\t0\r\nMS4A1\t1\r\n\r\n"),
        ("columns.tsv", "CD3D\tT cell\nMS4A1\tB cell\n"),
    ],
)
def test_any_text_file_with_a_gene_column(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert load(tmp_path / name).genes == ("CD3D", "MS4A1")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no gene"),
        (b"gene\n", "holds no gene"),
        (b"CD3D\nCD3D\n", "'CD3D' comes twice (gene 1"),
        (b"gene,x\n,1\n", "the gene name is empty"),
        (b"gene_name,index\nA,1\nB,0\n", "'index' must count 0, 1, 2"),
        (b"gene\n\xff\xfe\n", "cannot be read as a vocabulary"),
    ],
)
def test_bad_vocabulary_file(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "genes.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        load(path)
    assert says in str(error.value)
    assert "genes.csv" in str(error.value)


def test_unknown_name() -> None:
    with pytest.raises(DataError, match=r"'nope' is neither a known name \(scfoundation\) nor a file"):
        load("nope")
    with pytest.raises(DataError, match="no vocabulary is named 'nope'"):
        Vocabulary.named("nope")


def test_symbols_ids_and_versions_find_the_same_gene() -> None:
    vocab = load("scfoundation")
    names = ["CD3D", "ENSG00000167286", "ENSG00000167286.10", "ENSG00000167286.x", "Cd3d"]
    alignment = align(names, vocab)
    cd3d = vocab.genes.index("CD3D")
    assert alignment.column_to_gene.tolist() == [cd3d, cd3d, cd3d, -1, -1]
    assert alignment.column_to_gene.dtype == np.int32
    assert (alignment.matched, alignment.duplicates, alignment.dropped, alignment.genes) == (3, 2, 2, 1)


def test_a_vocabulary_of_ensembl_ids_takes_versioned_ids() -> None:
    vocab = Vocabulary(("ENSG00000156738", "ENSG00000167286"))
    assert align(["ENSG00000167286.10", "ENSG00000156738"], vocab).column_to_gene.tolist() == [1, 0]


def test_symbols_with_a_dot_are_kept_whole() -> None:
    assert align(["RP11-34P13.7", "x"], Vocabulary(("RP11-34P13", "RP11-34P13.7"))).column_to_gene[0] == 1


def test_the_names_that_find_most_genes_win() -> None:
    vocab = load("scfoundation")
    symbols, ids = ["CD3D", "old_name"], ["ENSG00000167286", "ENSG00000156738"]
    for names, other in ((symbols, ids), (ids, symbols)):
        found = align(names, vocab, [other]).column_to_gene
        assert [vocab.genes[gene] for gene in found] == ["CD3D", "MS4A1"]


def test_no_common_gene_shows_both_sides() -> None:
    with pytest.raises(
        DataError, match=r"0 of 2 gene columns match .* \(the source has g1, g2; the .* A1BG, A1CF"
    ):
        align(["g1", "g2"], load("scfoundation"))


@given(
    st.lists(st.sampled_from(["a", "b", "c", "x", "y"]), min_size=1).filter(
        lambda names: set(names) & set("abc")
    )
)
def test_alignment_counts_every_column_once(names: list[str]) -> None:
    vocab = Vocabulary(("c", "b", "a"))
    alignment = align(names, vocab)
    assert alignment.matched + alignment.dropped == len(names)
    assert alignment.genes == len(set(names) & {"a", "b", "c"})
    for name, gene in zip(names, alignment.column_to_gene, strict=True):
        assert (vocab.genes[gene] if gene >= 0 else None) == (name if name in "abc" else None)


@pytest.mark.parametrize(
    ("file", "genes"),
    [
        ("pbmc8k_ensembl", 18_931),
        ("sc_mixology_ensembl", 14_948),
        ("pbmc3k", 18_767),
        ("baron_pancreas_h1", 18_525),
    ],
)
def test_real_data_aligns(file: str, genes: int, shared: Path) -> None:
    var = anndata.read_h5ad(shared / "data" / f"{file}.h5ad", backed="r").var
    alternatives = [var[column].tolist() for column in var]
    assert align(var.index.tolist(), load("scfoundation"), alternatives).genes == genes
