"""Other names of genes: HGNC files, what a name leads to, and the rules by which an alignment uses them."""

from __future__ import annotations

import gzip
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfoundry_data import aliases as aliases_module
from cellfoundry_data.aliases import Aliases, GeneNames, shipped
from cellfoundry_data.errors import DataError
from cellfoundry_data.vocabulary import GeneAlignment, Vocabulary, align, load

HEADER = "hgnc_id\tsymbol\tname\tstatus\talias_symbol\tprev_symbol\tensembl_gene_id\n"
HGNC = HEADER + (
    'HGNC:1\tRIGI\tx\tApproved\t"RIG-I|FLJ13599"\tDDX58\tENSG00000107201\n'
    'HGNC:2\tMS4A1\t"quoted, name"\tApproved\tB1|Bp35\t"CD20"\tENSG00000156738\n'
    "HGNC:3\tGONE\tx\tEntry Withdrawn\tOLD\t\t\n"
    "HGNC:4\tSHORT\tx\tApproved\n"
)


def found(alignment: GeneAlignment, vocab: Vocabulary) -> list[str | None]:
    return [vocab.genes[gene] if gene >= 0 else None for gene in alignment.column_to_gene]


@pytest.mark.parametrize("name", ["hgnc.txt", "hgnc.tsv", "hgnc.txt.gz"])
def test_an_hgnc_file(name: str, tmp_path: Path) -> None:
    data = HGNC.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert Aliases.from_hgnc(tmp_path / name).genes == (
        GeneNames("RIGI", ("DDX58",), ("RIG-I", "FLJ13599"), ("ENSG00000107201",)),
        GeneNames("MS4A1", ("CD20",), ("B1", "Bp35"), ("ENSG00000156738",)),
        GeneNames("SHORT"),
    )


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "lacks the column 'symbol'"),
        (b"symbol,alias_symbol\n", "lacks the column 'symbol'"),
        (HEADER.replace("prev_symbol", "previous").encode(), "lacks the column 'prev_symbol'"),
        (HEADER.encode(), "holds no gene with status Approved"),
        ((HGNC + "HGNC:9\tRIGI\tx\tApproved\n").encode(), "gives the symbol 'RIGI' to two genes"),
        (b"\xff\xfe\x00", "cannot be read as a table of gene names"),
    ],
)
def test_a_file_that_is_no_hgnc_file(data: bytes, says: str, tmp_path: Path) -> None:
    for name in ("genes.txt", "genes.tsv.gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        with pytest.raises(DataError) as error:
            Aliases.from_hgnc(path)
        assert says in str(error.value)
        assert name in str(error.value)


def test_missing_damaged_and_too_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Aliases.from_hgnc(tmp_path / "none.txt")
    packed = gzip.compress(HGNC.encode())
    for damaged in (packed[:-9], packed[:40] + b"\0\0\0\0" + packed[44:], b"no gzip"):
        (tmp_path / "bad.txt.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"bad\.txt\.gz: cannot be read"):
            Aliases.from_hgnc(tmp_path / "bad.txt.gz")
    monkeypatch.setattr(aliases_module, "MAX_FILE_BYTES", 100)
    (tmp_path / "bomb.txt.gz").write_bytes(packed)
    with pytest.raises(DataError, match=r"bomb\.txt\.gz: is larger than"):
        Aliases.from_hgnc(tmp_path / "bomb.txt.gz")


rows = st.binary(max_size=60) | st.text('"\t\n\r|\0a', max_size=60).map(str.encode)


@settings(deadline=None)
@given(rows=rows, headed=st.booleans())
def test_any_bytes_are_read_or_refused(
    rows: bytes, headed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_bytes((HEADER.encode() if headed else b"") + rows)
    try:
        Aliases.from_hgnc(path)
    except DataError as error:
        assert "fuzz.txt" in str(error)  # noqa: PT017


names = st.sampled_from("abcdefgh")
tables = st.lists(
    st.builds(
        GeneNames, names, st.lists(names, max_size=2).map(tuple), st.lists(names, max_size=2).map(tuple)
    ),
    max_size=5,
    unique_by=lambda gene: gene.symbol,
).map(lambda genes: Aliases(tuple(genes)))


def gene_of(name: str, genes: tuple[GeneNames, ...]) -> GeneNames | None:
    """The gene a name belongs to, by the plainest reading of the rule; None for none or several."""
    for claims in (lambda gene: (gene.symbol,), lambda gene: gene.previous, lambda gene: gene.also):
        claimants = [gene for gene in genes if name in claims(gene)]
        if claimants:
            return claimants[0] if len(claimants) == 1 else None
    return None


def name_in(vocab: Vocabulary, gene: GeneNames, genes: tuple[GeneNames, ...]) -> str | None:
    """What the vocabulary calls a gene."""
    if gene.symbol in vocab.genes:
        return gene.symbol
    for others in (gene.previous, gene.also):
        there = {name for name in others if name in vocab.genes and gene_of(name, genes) is gene}
        if there:
            return there.pop() if len(there) == 1 else None
    return None


@settings(deadline=None, max_examples=60)
@given(
    table=tables,
    vocab=st.lists(names, min_size=1, unique=True).map(tuple).map(Vocabulary),
    source=st.lists(names, min_size=1, max_size=8),
)
def test_alignment_by_alias_is_what_a_plain_reading_gives(
    table: Aliases, vocab: Vocabulary, source: list[str]
) -> None:
    expected: list[str | None] = []
    ambiguous = 0
    for name in source:
        gene = gene_of(name, table.genes)
        if name in vocab.genes:
            expected.append(name)
        elif gene:
            expected.append(name_in(vocab, gene, table.genes))
        else:
            expected.append(None)
            ambiguous += any(
                name in (*other.previous, *other.also) and name_in(vocab, other, table.genes) is not None
                for other in table.genes
            )
    if not any(expected):
        with pytest.raises(DataError, match="0 of"):
            align(source, vocab, aliases=table)
        return
    alignment = align(source, vocab, aliases=table)
    assert found(alignment, vocab) == expected
    by_alias = sum(gene is not None and gene != name for name, gene in zip(source, expected, strict=True))
    assert alignment.matched_by_alias == by_alias
    assert alignment.ambiguous == ambiguous
    known = len(source) - expected.count(None)
    assert (alignment.matched, alignment.dropped) == (known, expected.count(None))
    assert alignment.genes == known - alignment.duplicates == len(set(expected) - {None})
    assert list(alignment.dropped_names) == [
        name for name, gene in zip(source, expected, strict=True) if gene is None
    ]


def test_the_shipped_table_knows_older_and_newer_symbols() -> None:
    vocab = load("scfoundation")
    alignment = align(["TSPAN6", "CCDC132", "FIRRM", "ENSG00000000460.17", "HLA.A", "MT.CO1"], vocab)
    assert found(alignment, vocab) == ["TSPAN6", "VPS50", "C1orf112", "C1orf112", "HLA-A", "MT-CO1"]
    assert (alignment.matched_by_alias, alignment.duplicates) == (4, 1)


def test_the_shipped_tables_other_symbols_are_of_one_gene_each() -> None:
    vocab = load("scfoundation")
    genes = shipped().genes
    others = [name for gene in genes for name in gene.previous]
    assert len(others) == len(set(others)) == 1195
    assert not set(others) & set(vocab.genes)
    assert {gene.symbol for gene in genes} <= set(vocab.genes)
    assert sum(len(gene.ensembl_ids) for gene in genes) == 19_457


def test_symbols_that_the_makers_lists_tell_apart_are_no_aliases() -> None:
    path = Path(__file__).parents[2] / "data_platform" / "scripts" / "make_ensembl_table.py"
    spec = spec_from_file_location("make_ensembl_table", path)
    assert spec
    assert spec.loader
    maker = module_from_spec(spec)
    spec.loader.exec_module(maker)
    table = {"e1": "A", "e2": "B", "e3": "C"}
    newer = {"e1": "A", "e2": "B_new", "e3": "ENSG00000000003", "e4": "taken"}
    older = {"e1": "taken", "e2": "B_old", "e3": "C_old", "e5": "C", "e6": "A_elsewhere"}
    others = maker.other_symbols(table, [newer, older], {"A", "B", "C"})
    # "taken" is today another gene's, and beside "C_old" the older list calls another id C.
    assert others == {"B": {"B_new", "B_old"}}


def test_the_shipped_table_serves_vocabularies_of_newer_symbols_and_of_ids() -> None:
    newer = Vocabulary(("VPS50", "FIRRM"))
    assert found(align(["CCDC132", "C1orf112"], newer), newer) == ["VPS50", "FIRRM"]
    ids = Vocabulary(("ENSG00000000460", "ENSG00000004766"))
    assert found(align(["CCDC132", "FIRRM", "C1orf112"], ids), ids) == [
        "ENSG00000004766",
        "ENSG00000000460",
        "ENSG00000000460",
    ]


def test_an_id_of_the_pseudoautosomal_regions_copy_on_y_is_its_gene() -> None:
    vocab = load("scfoundation")
    assert found(align(["ENSG00000182378.15_PAR_Y", "ENSG00000182378"], vocab), vocab) == ["PLCXD1", "PLCXD1"]


def test_an_alias_of_two_genes_is_not_used() -> None:
    vocab = Vocabulary(("A", "B"))
    table = Aliases((GeneNames("A", also=("shared",)), GeneNames("B", also=("shared", "own"))))
    alignment = align(["shared", "own", "A"], vocab, aliases=table)
    assert found(alignment, vocab) == [None, "B", "A"]
    assert (alignment.ambiguous, alignment.matched_by_alias, alignment.dropped) == (1, 1, 1)


def test_a_symbol_that_was_approved_goes_before_one_that_is_only_used() -> None:
    vocab = Vocabulary(("A", "B"))
    table = Aliases((GeneNames("A", previous=("x",)), GeneNames("B", also=("x",))))
    assert found(align(["x"], vocab, aliases=table), vocab) == ["A"]


def test_the_symbol_of_a_gene_outside_the_vocabulary_is_nobodys_alias() -> None:
    vocab = Vocabulary(("A", "B"))
    table = Aliases((GeneNames("A", also=("C",)), GeneNames("C")))
    assert found(align(["C", "B"], vocab, aliases=table), vocab) == [None, "B"]


def test_an_alias_does_not_take_a_column_whose_id_is_another_genes() -> None:
    vocab = load("scfoundation")
    known, other = "ENSG00000107201", "ENSG00000999999"
    table = Aliases((GeneNames("RIGI", ("DDX58",), ("RIG-I",), (known,)),))
    columns = ["RIG-I", "RIG-I", "MS4A1", "CD3D"]
    alignment = align(columns, vocab, [[other, known, "ENSG00000156738", "ENSG00000167286"]], table)
    assert found(alignment, vocab) == [None, "DDX58", "MS4A1", "CD3D"]
    assert alignment.matched_by_alias == 0  # the second by its id
    assert found(align(columns, vocab, aliases=table), vocab) == ["DDX58", "DDX58", "MS4A1", "CD3D"]


def test_an_exact_symbol_keeps_its_gene_and_an_alias_adds_to_it() -> None:
    vocab = load("scfoundation")
    alignment = align(["VPS50", "CCDC132"], vocab)
    assert found(alignment, vocab) == ["VPS50", "VPS50"]
    assert alignment.duplicates == 1


def test_symbols_and_ids_fill_each_others_gaps() -> None:
    vocab = load("scfoundation")
    symbols = ["CD3D", "unknown", "MS4A1", "", "nothing"]
    ids = ["ENSG00000167286", "ENSG00000107201", "ENSG_custom", "ENSG00000000460.1", "ENSG00000999999"]
    for first, second in ((symbols, ids), (ids, symbols)):
        alignment = align(first, vocab, [second])
        assert found(alignment, vocab) == ["CD3D", "DDX58", "MS4A1", "C1orf112", None]
        assert alignment.matched_by_alias == 0
        assert alignment.dropped_names == (first[4],)


def test_a_list_about_the_columns_fills_no_gaps() -> None:
    vocab = load("scfoundation")
    genes = ["CD3D", "MS4A1", "LYZ", "unknown", "CD3E"]
    markers = ["LYZ", "CD3D", "MS4A1", "NKG7", ""]
    assert found(align(genes, vocab, [markers]), vocab) == ["CD3D", "MS4A1", "LYZ", None, "CD3E"]
    one_gene = ["protein", "protein", "protein", "IGH", "protein"]
    assert found(align(genes, vocab, [one_gene]), vocab) == ["CD3D", "MS4A1", "LYZ", None, "CD3E"]
