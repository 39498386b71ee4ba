"""Golden outputs of the official implementation, from the reference data beside the checkout: within 1e-4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.embedder import Embedder
from cellfoundry_model.official import import_official

CASES = {
    "expected_cell_all_t4": ("cell", {"target": "t4"}),
    "expected_rde_all_a5": ("rde", {"target": "a5"}),
    "expected_gene_t4_first2": ("gene", {"output": "gene", "target": "t4"}),
    "expected_gene_expression_t4": ("gene", {"output": "expression", "target": "t4"}),
}
GROUPINGS: dict[str, Callable[[int], list[list[int]]]] = {
    "one at a time": lambda n: [[cell] for cell in range(n)],
    "all at once": lambda n: [list(range(n))],
    "reversed": lambda n: [list(range(n))[::-1]],
}


@pytest.fixture(scope="module")
def genes(shared: Path) -> list[str]:
    lines = (shared / "parity" / "OS_scRNA_gene_index.19264.tsv").read_text().splitlines()
    return [line.split("\t")[0] for line in lines[1:]]


@pytest.fixture(scope="module")
def batch(shared: Path, cells_from_dense: Callable[[np.ndarray], CellBatch], genes: list[str]) -> CellBatch:
    path = shared / "parity" / "baron_10cells.csv"
    assert path.read_text().partition("\n")[0].split(",")[1:] == genes
    return cells_from_dense(np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(1, len(genes) + 1)))


@pytest.fixture(scope="module")
def embedders(
    shared: Path, genes: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Embedder]:
    folder = tmp_path_factory.mktemp("official")
    checkpoint = shared / "parity" / "tiny.ckpt"
    for part in ("cell", "rde", "gene"):
        import_official(checkpoint, folder / part, vocab_genes=genes, part=part)
    return {part: Embedder(folder / part) for part in ("cell", "rde", "gene")}


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("name", CASES)
def test_official_numbers(
    shared: Path, embedders: dict[str, Embedder], batch: CellBatch, name: str, grouping: str
) -> None:
    part, conventions = CASES[name]
    expected = np.load(shared / "parity" / f"{name}.npy")
    ours = np.empty_like(expected)
    for cells in GROUPINGS[grouping](len(expected)):
        ours[cells] = embedders[part].encode(batch.select(np.array(cells)), **conventions)
    assert np.abs(ours - expected).max() <= 1e-4
