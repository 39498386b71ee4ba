"""Other names of genes: Ensembl ids, and the symbols a gene had before, has got since, or is also called.

A table ships with the package (vocabularies/ensembl.tsv.gz); an HGNC complete-set file gives a larger one.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from .errors import DataError

HGNC_COLUMNS = ("symbol", "alias_symbol", "prev_symbol", "ensembl_gene_id", "status")

MAX_FILE_BYTES = 2**28
"""Of an uncompressed table: the complete set of HGNC has 17 MB."""


@dataclass(frozen=True)
class GeneNames:
    """All names of one gene.

    Attributes:
        symbol: the approved one.
        previous: symbols that were or became the approved one at another time.
        also: what else the gene is called.
        ensembl_ids: without version.
    """

    symbol: str
    previous: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    ensembl_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class ResolvedAliases:
    """Names that lead to the genes of one vocabulary.

    Attributes:
        by_id: Ensembl gene id -> position.
        by_symbol: symbol outside the vocabulary -> position.
        ambiguous: symbols outside the vocabulary that name several genes, at least one of them in it.
        with_id: positions of the genes that have an Ensembl id.
    """

    by_id: Mapping[str, int]
    by_symbol: Mapping[str, int]
    ambiguous: frozenset[str]
    with_id: frozenset[int]


@dataclass(frozen=True, eq=False)  # known by identity: comparing 45,000 genes costs more than using them
class Aliases:
    """Names of many genes, in either direction: old symbols of a source or of the vocabulary.

    Attributes:
        genes: one entry a gene; approved symbols are unique.
    """

    genes: tuple[GeneNames, ...]

    @staticmethod
    def from_hgnc(path: str | Path) -> Aliases:
        """Read an HGNC complete-set file: tab separated, .txt or .tsv, gzipped or not.

        Genes whose status is not Approved are left out.

        Raises:
            DataError: the file cannot be read, is larger than 256 MiB, lacks one of the columns symbol,
                alias_symbol, prev_symbol, ensembl_gene_id and status, or names a symbol twice.
        """
        rows = _rows(Path(path))
        header = [field.strip() for field in next(rows, [])]
        for column in HGNC_COLUMNS:
            if column not in header:
                raise DataError(
                    f"{path}: lacks the column {column!r}; aliases are read from an HGNC complete-set file "
                    "(hgnc_complete_set.txt), tab separated with a header."
                )
        at = {name: header.index(name) for name in HGNC_COLUMNS}
        last = max(at.values())
        genes: dict[str, GeneNames] = {}
        for row in rows:
            row += [""] * (last + 1 - len(row))
            symbol = row[at["symbol"]].strip()
            if row[at["status"]].strip() != "Approved" or not symbol:
                continue
            if symbol in genes:
                raise DataError(
                    f"{path}: gives the symbol {symbol!r} to two genes; approved symbols are unique."
                )
            previous = _several(row[at["prev_symbol"]])
            also = _several(row[at["alias_symbol"]])
            genes[symbol] = GeneNames(symbol, previous, also, _several(row[at["ensembl_gene_id"]]))
        if not genes:
            raise DataError(f"{path}: holds no gene with status Approved.")
        return Aliases(tuple(genes.values()))

    def resolve(self, positions: Mapping[str, int]) -> ResolvedAliases:
        """Which names lead to which gene of a vocabulary, given the positions of its genes.

        A gene is found in the vocabulary by its approved symbol, else by its only previous symbol there, else
        by its only other name there; a vocabulary symbol that is approved for another gene is that gene.
        A name belongs to the gene that it is approved for, else to the one it was approved for at another
        time, else to the one also called so; claimed twice at that rank it is ambiguous and leads nowhere.
        """
        owner_of = _owners(self.genes)
        by_symbol: dict[str, int] = {}
        ambiguous: set[str] = set()
        by_id: dict[str, int] = {}
        for owner, gene in enumerate(self.genes):
            position = _position(gene, owner, positions, owner_of)
            if position is None:
                continue
            for name in (gene.symbol, *gene.previous, *gene.also):
                if name in positions:
                    continue
                if owner_of[name] == owner:
                    by_symbol[name] = position
                elif owner_of[name] is None:
                    ambiguous.add(name)
            for gene_id in gene.ensembl_ids:
                by_id.setdefault(gene_id, position)
        return ResolvedAliases(by_id, by_symbol, frozenset(ambiguous), frozenset(by_id.values()))


@lru_cache(maxsize=1)
def shipped() -> Aliases:
    """The table in the package (made by scripts/make_ensembl_table.py): ids and symbols of the scfoundation
    genes.
    """
    packed = (resources.files("cellfoundry_data") / "vocabularies" / "ensembl.tsv.gz").read_bytes()
    ids: dict[str, list[str]] = {}
    previous: dict[str, list[str]] = {}
    for line in gzip.decompress(packed).decode().splitlines()[1:]:
        gene_id, symbol, others = line.split("\t")
        ids.setdefault(symbol, []).append(gene_id)
        previous.setdefault(symbol, []).extend(_several(others))
    return Aliases(
        tuple(
            GeneNames(symbol, tuple(dict.fromkeys(previous[symbol])), ensembl_ids=tuple(of_symbol))
            for symbol, of_symbol in ids.items()
        )
    )


def _owners(genes: Iterable[GeneNames]) -> dict[str, int | None]:
    """Name -> number of the gene it belongs to, None where two claim it with equal right."""
    owner_of: dict[str, int | None] = {}
    ranks = [[(gene.symbol,), gene.previous, gene.also] for gene in genes]
    for rank in range(3):
        claimed: dict[str, int | None] = {}
        for owner, names in enumerate(ranks):
            for name in set(names[rank]):
                claimed[name] = None if name in claimed else owner
        owner_of = claimed | owner_of
    return owner_of


def _position(
    gene: GeneNames, owner: int, positions: Mapping[str, int], owner_of: Mapping[str, int | None]
) -> int | None:
    """Where the vocabulary has the gene, under whichever name."""
    if gene.symbol in positions:
        return positions[gene.symbol]
    for names in (gene.previous, gene.also):
        there = {name for name in names if name in positions and owner_of[name] == owner}
        if there:
            return positions[there.pop()] if len(there) == 1 else None
    return next((positions[gene_id] for gene_id in gene.ensembl_ids if gene_id in positions), None)


def _several(field: str) -> tuple[str, ...]:
    """The names of a field, separated by ``|``, quoted or not."""
    return tuple(name for part in field.split("|") if (name := part.strip().strip('"').strip()))


def _rows(path: Path) -> Iterator[list[str]]:
    try:
        with path.open("rb") as file, gzip.open(file) if path.suffix == ".gz" else file as plain:
            data = plain.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise DataError(
                f"{path}: is larger than {MAX_FILE_BYTES >> 20} MiB, more than any list of gene names."
            )
        yield from csv.reader(data.decode("utf-8-sig").splitlines(), delimiter="\t")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table of gene names ({error}).") from error
