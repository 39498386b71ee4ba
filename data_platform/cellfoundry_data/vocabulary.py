"""Gene vocabularies, and the alignment of a source's gene columns to one of them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import DataError

NAMED = ("scfoundation",)
GENE_COLUMNS = ("gene_name", "gene", "symbol")
_ENSEMBL_ID = re.compile(r"(ENS[A-Z]*G\d{11})\.\d+")


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
    """

    column_to_gene: npt.NDArray[np.int32]
    matched: int
    duplicates: int
    dropped: int

    @property
    def genes(self) -> int:
        """Vocabulary genes that the source measures."""
        return self.matched - self.duplicates


def align(
    names: Sequence[str], vocab: Vocabulary, alternatives: Sequence[Sequence[str]] | None = None
) -> GeneAlignment:
    """Find each gene column in the vocabulary.

    Each name is looked up by ``find_genes``. ``alternatives`` are other lists of names for the same columns
    (ids beside symbols); the list that finds most vocabulary genes wins, the first of equals.

    Raises:
        DataError: no column is a gene of the vocabulary.
    """
    best = max((find_genes(column, vocab) for column in (names, *(alternatives or ()))), key=_distinct)
    matched = int((best >= 0).sum())
    if not matched:
        ours, theirs = ", ".join(vocab.genes[:3]), ", ".join(names[:3])
        raise DataError(
            f"0 of {len(names):,} gene columns match the vocabulary of {len(vocab):,} genes (the source has "
            f"{theirs}; the vocabulary has {ours}); gene columns must be human symbols or Ensembl gene ids."
        )
    return GeneAlignment(best, matched, matched - _distinct(best), len(best) - matched)


def find_genes(names: Sequence[str], vocab: Vocabulary) -> npt.NDArray[np.int32]:
    """Position of each name in the vocabulary, int32, (names,); -1 where it has none.

    A name is looked up as it stands, then as an Ensembl gene id without its version suffix, then as the symbol
    that the shipped table gives for that id.
    """
    symbol_of = _ensembl_symbols()
    position_of = vocab.index
    found = np.full(len(names), -1, np.int32)
    for column, name in enumerate(names):
        versioned = _ENSEMBL_ID.fullmatch(name)
        gene_id = versioned[1] if versioned else name
        for form in (name, gene_id, symbol_of.get(gene_id, "")):
            if form in position_of:
                found[column] = position_of[form]
                break
    return found


def _distinct(column_to_gene: npt.NDArray[np.int32]) -> int:
    return len(np.unique(column_to_gene[column_to_gene >= 0]))


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


@lru_cache
def _ensembl_symbols() -> dict[str, str]:
    """Ensembl gene id -> symbol of the scfoundation vocabulary (made by scripts/make_ensembl_table.py)."""
    text = gzip.decompress(_shipped_file("ensembl.tsv.gz").read_bytes()).decode()
    return dict(line.split("\t") for line in text.splitlines()[1:])
