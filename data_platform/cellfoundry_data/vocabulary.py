"""Gene vocabularies, and the alignment of a source's gene columns to one of them."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .aliases import Aliases, ResolvedAliases, shipped
from .errors import DataError

NAMED = ("scfoundation",)
GENE_COLUMNS = ("gene_name", "gene", "symbol")
_ENSEMBL_ID = re.compile(r"(ENS[A-Z]*G\d{11})(?:\.\d+(?:_PAR_Y)?)?")


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of unique gene names; a gene's position is its id everywhere in the platform."""

    genes: tuple[str, ...]

    def __len__(self) -> int:
        """Number of genes."""
        return len(self.genes)

    @cached_property
    def hash(self) -> str:
        """SHA-256, hex, of the names joined by newlines: equal hashes mean equal genes in equal order."""
        return hashlib.sha256("\n".join(self.genes).encode()).hexdigest()

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of every gene name."""
        return {gene: position for position, gene in enumerate(self.genes)}

    @staticmethod
    def named(name: str) -> Vocabulary:
        """A vocabulary that ships with the package; raises DataError for a name that does not."""
        if name not in NAMED:
            raise DataError(f"no vocabulary is named {name!r}; known names: {', '.join(NAMED)}.")
        return _shipped(name)

    @staticmethod
    def from_file(path: str | Path) -> Vocabulary:
        """Read a .tsv, .csv or .txt file with one gene a line.

        The gene column is the one headed ``gene_name``, ``gene`` or ``symbol``; without such a header every
        line is a gene and the first column counts. A column ``index`` must then count 0, 1, 2, ...

        Raises:
            DataError: missing or unreadable file, no gene, an empty or repeated gene name, a wrong index.
        """
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as a vocabulary ({error}).") from error
        genes, index = _gene_column([line for line in lines if line.strip()])
        if not genes:
            raise DataError(f"{path}: holds no gene; a vocabulary is a text file with one gene a line.")
        if index is not None and index != [str(position) for position in range(len(genes))]:
            raise DataError(f"{path}: column 'index' must count 0, 1, 2, ... down the file.")
        seen: set[str] = set()
        for position, gene in enumerate(genes):
            if not gene or gene in seen:
                problem = f"gene {gene!r} comes twice" if gene else "the gene name is empty"
                raise DataError(f"{path}: {problem} (gene {position}, counted from 0); names must be unique.")
            seen.add(gene)
        return Vocabulary(tuple(genes))

    def write_tsv(self, path: str | Path) -> None:
        """Write ``gene_name<TAB>index`` lines under that header, atomically."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        rows = "".join(f"{gene}\t{position}\n" for position, gene in enumerate(self.genes))
        temporary.write_text("gene_name\tindex\n" + rows, encoding="utf-8")
        temporary.replace(path)


def load(name_or_path: str | Path) -> Vocabulary:
    """A shipped vocabulary by name, else one from a file; raises DataError where neither exists."""
    if str(name_or_path) in NAMED:
        return Vocabulary.named(str(name_or_path))
    if not Path(name_or_path).exists():
        raise DataError(
            f"vocabulary {str(name_or_path)!r} is neither a known name ({', '.join(NAMED)}) nor a file."
        )
    return Vocabulary.from_file(name_or_path)


@dataclass(frozen=True)
class GeneAlignment:
    """Where each gene column of a source goes.

    Attributes:
        column_to_gene: int32, (columns,); vocabulary position of a column, -1 where the column is dropped.
        matched: columns that have a position.
        duplicates: matched columns beyond the first of their gene; their counts are summed.
        dropped: columns without a position.
        matched_by_alias: matched columns whose gene the vocabulary knows under another symbol.
        ambiguous: dropped columns whose name is an alias of several genes.
        dropped_names: the first 10 names without a position.
    """

    column_to_gene: npt.NDArray[np.int32]
    matched: int
    duplicates: int
    dropped: int
    matched_by_alias: int = 0
    ambiguous: int = 0
    dropped_names: tuple[str, ...] = ()

    @property
    def genes(self) -> int:
        """Vocabulary genes that the source measures."""
        return self.matched - self.duplicates


def align(
    names: Sequence[str],
    vocab: Vocabulary,
    alternatives: Sequence[Sequence[str]] | None = None,
    aliases: Aliases | None = None,
) -> GeneAlignment:
    """Find each gene column in the vocabulary: by its symbol, else its Ensembl id, else an alias.

    ``alternatives`` are other lists of names for the same columns (ids beside symbols). The list that finds most
    vocabulary genes by symbol or id decides, the first of equals. Lists that name the same genes (``_same_genes``)
    fill its gaps in their order. What no list finds is looked up as an alias, in ``aliases`` and then in the
    shipped table. An alias is no proof against an id: a column with an Ensembl id gets no gene that is known by
    another id. Columns of one gene are summed, however each was found.

    Raises:
        DataError: no column is a gene of the vocabulary.
    """
    lists = [names, *(alternatives or ())]
    found_by = [find_genes(column, vocab, aliases) for column in lists]
    best = max(found_by, key=_distinct)
    trusted = [
        (column, found) for column, found in zip(lists, found_by, strict=True) if _same_genes(best, found)
    ]
    column_to_gene = best.copy()
    for _, found in trusted:
        column_to_gene = np.where(column_to_gene >= 0, column_to_gene, found)
    by_alias = ambiguous = 0
    missing = np.flatnonzero(column_to_gene < 0).tolist()
    tables = _resolved(vocab, aliases) if missing else []  # reading them takes 0.1 s
    for column in missing:
        gene = _by_alias([column_names[column] for column_names, _ in trusted], vocab.index, tables)
        if gene is None:
            ambiguous += 1
        elif gene >= 0:
            column_to_gene[column] = gene
            by_alias += 1
    dropped = np.flatnonzero(column_to_gene < 0).tolist()
    matched = len(names) - len(dropped)
    if not matched:
        ours, theirs = ", ".join(vocab.genes[:3]), ", ".join(names[:3])
        raise DataError(
            f"0 of {len(names):,} gene columns match the vocabulary of {len(vocab):,} genes (the source has "
            f"{theirs}; the vocabulary has {ours}); gene columns must be human symbols or Ensembl gene ids."
        )
    return GeneAlignment(
        column_to_gene,
        matched,
        matched - _distinct(column_to_gene),
        len(dropped),
        by_alias,
        ambiguous,
        tuple(names[column] for column in dropped[:10]),
    )


def find_genes(
    names: Sequence[str], vocab: Vocabulary, aliases: Aliases | None = None
) -> npt.NDArray[np.int32]:
    """Position of each name in the vocabulary, int32, (names,); -1 where it has none.

    A name is looked up as it stands, then as an Ensembl gene id without its version suffix, then as an id of the
    shipped table or of ``aliases``. Aliases themselves are not looked up.
    """
    position_of = vocab.index
    by_id: list[Mapping[str, int]] = []
    found = np.full(len(names), -1, np.int32)
    for column, name in enumerate(names):
        if name in position_of:
            found[column] = position_of[name]
        elif gene_id := _ensembl_id(name):
            by_id = by_id or [position_of, *(table.by_id for table in reversed(_resolved(vocab, aliases)))]
            found[column] = next((known[gene_id] for known in by_id if gene_id in known), -1)
    return found


def _ensembl_id(name: str) -> str | None:
    """The id without version, if the name is an Ensembl gene id."""
    match = _ENSEMBL_ID.fullmatch(name)
    return match[1] if match else None


def _same_genes(best: npt.NDArray[np.int32], found: npt.NDArray[np.int32]) -> bool:
    """Whether a list of names that found the genes ``found`` names the columns, rather than something about them.

    It does if it finds at least half as many genes as the best list and agrees with it on 9 of 10 columns where
    both find one: symbols and ids of one annotation differ on 1 of 2,000, chromosomes and types find nothing.
    """
    both = (best >= 0) & (found >= 0)
    agreeing = int((best[both] == found[both]).sum())
    return 2 * _distinct(found) >= _distinct(best) and 10 * agreeing >= 9 * int(both.sum())


def _by_alias(
    names: Sequence[str], position_of: Mapping[str, int], tables: Sequence[ResolvedAliases]
) -> int | None:
    """Position of a column with these names, none of them the vocabulary's; -1 for none, None if one is ambiguous.

    The first table that knows a name decides on it. R writes HLA-A as HLA.A, so each name is tried with hyphens
    for dots, too.
    """
    has_id = any(_ensembl_id(name) for name in names)
    ambiguous = False
    for name in (form for given in names for form in (given, given.replace(".", "-"))):
        table = next((table for table in tables if name in table.by_symbol or name in table.ambiguous), None)
        if table and name in table.ambiguous:
            ambiguous = True
            continue
        gene = table.by_symbol[name] if table else position_of.get(name)
        if gene is not None and not (has_id and any(gene in table.with_id for table in tables)):
            return gene
    return None if ambiguous else -1


@lru_cache(maxsize=2)  # with and without an HGNC file, which takes 50 MB
def _resolved(vocab: Vocabulary, aliases: Aliases | None) -> list[ResolvedAliases]:
    """The tables to look aliases up in, in that order."""
    return [table.resolve(vocab.index) for table in (aliases, shipped()) if table is not None]


def _distinct(column_to_gene: npt.NDArray[np.int32]) -> int:
    # np.unique takes 2 ms for 19,264 genes, this 0.04.
    return int(np.count_nonzero(np.bincount(column_to_gene[column_to_gene >= 0])))


def _gene_column(lines: list[str]) -> tuple[list[str], list[str] | None]:
    """The gene names and, where there is one, the index column of a vocabulary file's lines."""
    rows = [
        [field.strip() for field in row]
        for row in csv.reader(lines, delimiter="\t" if lines and "\t" in lines[0] else ",")
    ]
    header = [field.lower() for field in rows[0]] if rows else []
    named = [header.index(name) for name in GENE_COLUMNS if name in header]
    if not named:
        return [row[0] for row in rows], None
    genes = [row[named[0]] if len(row) > named[0] else "" for row in rows[1:]]
    if "index" not in header:
        return genes, None
    column = header.index("index")
    return genes, [row[column] if len(row) > column else "" for row in rows[1:]]


def _shipped_file(name: str) -> Traversable:
    return resources.files("cellfoundry_data") / "vocabularies" / name


@lru_cache
def _shipped(name: str) -> Vocabulary:
    with resources.as_file(_shipped_file(f"{name}.tsv")) as path:
        return Vocabulary.from_file(path)
