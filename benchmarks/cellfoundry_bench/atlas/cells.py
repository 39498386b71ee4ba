"""A seeded synthetic atlas: cells over the 19,264 genes whose lengths and counts are like those of real ones.

A cell's molecules are drawn one by one from its type's profile by Walker's alias method (Walker 1977) and then
counted, so that a cell costs its molecules and not its genes: 200,000 cells take half a minute. Profiles are
log-normal over genes; 15 % of a type's genes differ from the base. Draws are a counter-based stream (splitmix64,
Steele et al. 2014) of (seed, cell), so the result depends neither on threads nor on how many cells are asked for
at a time. Over 200,000 cells: about 1,600 +- 800 genes a cell, 64 % ones, 16 % twos, 0.04 % above 255.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from cellfoundry_bench.atlas.cache import cached, short_hash

SEED = 20240611
CELL_TYPES = 24
DONORS = 8
RUN_CELLS = 500  # consecutive cells of one type, as in a file that was joined from samples
FILES = 2
MEDIAN_MOLECULES, DEPTH_SD, FEWEST, MOST = 3600.0, 0.72, 150, 120_000
GENE_SD, TYPE_SD, TYPE_SHARE = 2.2, 1.5, 0.15
BLOCK_CELLS = 2048


@dataclass(frozen=True)
class Atlas:
    """Files of synthetic cells and what an epoch over them must add up to."""

    files: list[str]
    cells: int
    genes: int
    nnz: int
    molecules: int


@dataclass(frozen=True)
class Design:
    """What every cell's draw depends on: types (cells,), molecules (cells,), alias tables (types, genes)."""

    types: npt.NDArray[np.int64]
    molecules: npt.NDArray[np.int64]
    thresholds: npt.NDArray[np.uint32]
    aliases: npt.NDArray[np.int32]


def synthetic_atlas(cells: int, genes: list[str], seed: int = SEED) -> Atlas:
    """Two .h5ad files (CSR float32, int32, lzf; obs ``cell_type`` and ``donor``) from the cache, made if missing."""
    version = short_hash(Path(__file__).read_text(), seed, *genes)
    folder = cached(f"atlas-{cells}-{version}", lambda partial: _write_atlas(partial, cells, genes, seed))
    facts = json.loads((folder / "facts.json").read_text())
    return Atlas(**facts | {"files": [str(folder / name) for name in facts["files"]]})


def design(cells: int, genes: int, seed: int = SEED) -> Design:
    """Types, depths and profiles of ``cells`` cells over ``genes`` genes; a prefix of more cells' design."""
    rng = np.random.default_rng(seed)
    base = rng.lognormal(0.0, GENE_SD, genes)
    factor = np.where(
        rng.random((CELL_TYPES, genes)) < TYPE_SHARE, rng.lognormal(0, TYPE_SD, (CELL_TYPES, genes)), 1.0
    )
    tables = [alias_table(profile / profile.sum()) for profile in base * factor]
    runs = -(-cells // RUN_CELLS)
    types = np.repeat(np.random.default_rng([seed, 1]).integers(0, CELL_TYPES, runs), RUN_CELLS)[:cells]
    depth = np.random.default_rng([seed, 2]).lognormal(np.log(MEDIAN_MOLECULES), DEPTH_SD, cells)
    return Design(
        types,
        np.clip(depth, FEWEST, MOST).astype(np.int64),
        np.stack([threshold for threshold, _ in tables]),
        np.stack([alias for _, alias in tables]),
    )


@numba.njit(cache=True)
def alias_table(shares: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int32]]:
    """Vose's tables of a distribution: place i keeps i below ``threshold`` / 2^32 and is its alias above."""
    size = len(shares)
    scaled = shares * size
    threshold, alias = np.full(size, 2**32 - 1, np.uint32), np.arange(size).astype(np.int32)
    small, large = np.empty(size, np.int32), np.empty(size, np.int32)
    n_small = n_large = 0
    for i in range(size):
        if scaled[i] < 1.0:
            small[n_small] = i
            n_small += 1
        else:
            large[n_large] = i
            n_large += 1
    while n_small and n_large:
        n_small -= 1
        low, high = small[n_small], large[n_large - 1]
        threshold[low], alias[low] = np.uint32(scaled[low] * 4294967295.0), high
        scaled[high] -= 1.0 - scaled[low]
        if scaled[high] < 1.0:
            n_large -= 1
            small[n_small] = high
            n_small += 1
    return threshold, alias


@numba.njit(cache=True, nogil=True)
def draw_cells(
    first: int,
    stop: int,
    seed: int,
    types: npt.NDArray[np.int64],
    molecules: npt.NDArray[np.int64],
    thresholds: npt.NDArray[np.uint32],
    aliases: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Cells ``first`` to ``stop - 1`` as CSR: lengths (cells,), genes int32 ascending in a cell, counts float32."""
    genes = thresholds.shape[1]
    bound = 0
    for cell in range(first, stop):
        bound += min(molecules[cell], genes)
    lengths = np.empty(stop - first, np.int64)
    indices, counts = np.empty(bound, np.int32), np.empty(bound, np.float32)
    drawn = np.zeros(genes, np.int32)
    entry = 0
    for cell in range(first, stop):
        kind = types[cell]
        state = np.uint64(seed) * np.uint64(0xD1342543DE82EF95) ^ np.uint64(cell) * np.uint64(
            0x2545F4914F6CDD1D
        )
        for _ in range(molecules[cell]):
            state += np.uint64(0x9E3779B97F4A7C15)
            z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
            place = np.int64(((z >> np.uint64(32)) * np.uint64(genes)) >> np.uint64(32))
            if np.uint32(z & np.uint64(0xFFFFFFFF)) > thresholds[kind, place]:
                place = np.int64(aliases[kind, place])
            drawn[place] += 1
        start = entry
        for gene in range(genes):
            if drawn[gene]:
                indices[entry], counts[entry] = gene, drawn[gene]
                entry += 1
                drawn[gene] = 0
        lengths[cell - first] = entry - start
    return lengths, indices[:entry].copy(), counts[:entry].copy()


def synthetic_csr(
    cells: int, genes: int, seed: int = SEED, *, first: int = 0, stop: int | None = None
) -> Any:
    """Cells ``first`` to ``stop - 1`` of an atlas of ``cells`` cells as a scipy CSR matrix, on all cores."""
    import scipy.sparse

    made, stop = design(cells, genes, seed), cells if stop is None else stop

    def block(begin: int) -> Any:
        end = min(begin + BLOCK_CELLS, stop)
        return draw_cells(begin, end, seed, made.types, made.molecules, made.thresholds, made.aliases)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        blocks = list(pool.map(block, range(first, stop, BLOCK_CELLS)))
    lengths, indices, counts = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return scipy.sparse.csr_matrix((counts, indices, indptr), shape=(stop - first, genes))


def _write_atlas(folder: Path, cells: int, genes: list[str], seed: int) -> None:
    import anndata
    import pandas as pd

    made = design(cells, len(genes), seed)
    donors = np.arange(cells) * DONORS // cells
    bounds = np.linspace(0, cells, FILES + 1).astype(int)
    names, nnz, molecules = [], 0, 0
    for part in range(FILES):
        first, stop = bounds[part : part + 2]
        counts = synthetic_csr(cells, len(genes), seed, first=first, stop=stop)
        obs = pd.DataFrame(
            {
                "cell_type": pd.Categorical([f"type {kind:02d}" for kind in made.types[first:stop]]),
                "donor": pd.Categorical([f"donor {donor}" for donor in donors[first:stop]]),
            },
            index=[f"cell{cell}" for cell in range(first, stop)],
        )
        names.append(f"part{part}.h5ad")
        atlas = anndata.AnnData(X=counts, obs=obs, var=pd.DataFrame(index=genes))
        atlas.write_h5ad(folder / names[-1], compression="lzf")
        nnz, molecules = nnz + counts.nnz, molecules + int(counts.data.sum(dtype=np.float64))
    facts = Atlas(names, cells, len(genes), nnz, molecules)
    (folder / "facts.json").write_text(json.dumps(asdict(facts)))
