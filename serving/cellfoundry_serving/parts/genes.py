"""Which genes of a gene axis are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cellfoundry_data.vocabulary import Vocabulary, find_genes
from cellfoundry_serving.errors import ServingError

NAMED = 5
"""Unknown genes that a message names."""


def chosen_genes(genes: str | Path | Sequence[str], vocab_genes: Sequence[str]) -> tuple[int, ...]:
    """Positions in the vocabulary of the wanted genes, in their order.

    Args:
        genes: symbols or Ensembl ids: a list, one text with commas between them, or a file with one a line.
        vocab_genes: the model's genes.

    Raises:
        ServingError: no gene, unknown ones (they are named), or one that is named twice.
    """
    names = _names(genes)
    if not names:
        raise ServingError(
            "--genes names no gene; give symbols with commas between them, or a file with one a line."
        )
    found = find_genes(names, Vocabulary(tuple(vocab_genes)))
    unknown = [name for name, position in zip(names, found, strict=True) if position < 0]
    if unknown:
        nor_a_file = ", and no file of that name is here" if names == [genes] else ""
        more = f" and {len(unknown) - NAMED:,} more" if len(unknown) > NAMED else ""
        raise ServingError(
            f"--genes: {', '.join(unknown[:NAMED])}{more} {'is' if len(unknown) == 1 else 'are'} not among the model's "
            f"{len(vocab_genes):,} genes{nor_a_file}; its vocab.tsv lists them."
        )
    _, first, counts = np.unique(found, return_index=True, return_counts=True)
    if (counts > 1).any():
        twice = names[first[np.argmax(counts > 1)]]
        raise ServingError(f"--genes names {twice} twice; name each gene once.")
    return tuple(found.tolist())


def _names(genes: str | Path | Sequence[str]) -> list[str]:
    if isinstance(genes, str) and not _is_file(genes):
        named: Sequence[str] = genes.split(",")
    elif isinstance(genes, str | Path):
        try:
            named = Path(genes).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ServingError(
                f"--genes: {genes} is no text in UTF-8; give a file with one gene a line."
            ) from error
    else:
        named = genes
    return [name.strip() for name in named if name.strip()]


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # a list is soon longer than any name of a file
        return False
