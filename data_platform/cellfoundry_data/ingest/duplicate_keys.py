"""Between the passes: shuffle keys of all cells that equal an earlier one, for the second pass to flag them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellfoundry_data.ingest.duplicates import content_hashes, find_duplicates, write_hashes
from cellfoundry_data.ingest.work_folder import committed
from cellfoundry_data.store.cell_keys import MAX_SOURCE_ROWS, mix, shuffle_keys
from cellfoundry_data.store.reader import Store, read_frame

HASHES = "hashes.npy"
KEYS = "keys.npy"
SOURCES = "sources.npy"


@dataclass(frozen=True)
class DuplicateSearch:
    """What the tasks share.

    Attributes:
        hashes: files of ``write_hashes``, of all cells.
        n_ranges: ranges of hashes, a task each.
        first_source: duplicates of sources before it have been flagged by another ingest.
        seed: of the shuffle.
        folder: where a folder for each range goes.
        work: the folder of the whole ingest.
    """

    hashes: Sequence[Path]
    n_ranges: int
    first_source: int
    seed: int
    folder: Path
    work: Path

    def found(self, number: int) -> Path:
        """The folder of a range that is done."""
        return self.folder / f"{number:06d}"

    def find(self, number: int) -> Iterator[int]:
        """Search one range; yields nothing."""
        yield from ()
        sources, rows = find_duplicates(self.hashes, self.n_ranges, number)
        new = sources >= self.first_source
        sources, rows = sources[new], rows[new]
        cells = sources.astype(np.uint64) * np.uint64(MAX_SOURCE_ROWS) + rows.astype(np.uint64)
        with committed(self.found(number), self.work) as folder:
            np.save(folder / KEYS, np.sort(shuffle_keys(mix(cells), self.seed)))
            np.save(folder / SOURCES, np.column_stack(np.unique(sources, return_counts=True)))

    def counts(self) -> Counter[int]:
        """Duplicates of each source, by its number."""
        counts: Counter[int] = Counter()
        for number in range(self.n_ranges):
            counts.update(dict(np.load(self.found(number) / SOURCES).tolist()))
        return counts

    def flags(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which of these shuffle keys, ascending, belong to duplicates."""
        flagged = np.zeros(len(keys), bool)
        for number in range(self.n_ranges):
            known = np.load(self.found(number) / KEYS, mmap_mode="r")
            start, stop = np.searchsorted(known, keys[0]), np.searchsorted(known, keys[-1], side="right")
            flagged |= np.isin(keys, known[start:stop])
        return flagged


@dataclass(frozen=True)
class ShardHashes:
    """Hashes of the cells that a store has already, for an append.

    Attributes:
        store: the store.
        folder: where a folder for each shard goes.
        work: the folder of the whole ingest.
    """

    store: Path
    folder: Path
    work: Path

    def found(self, shard: int) -> Path:
        """The folder of a shard that is done."""
        return self.folder / f"{shard:06d}"

    def write(self, shard: int) -> Iterator[int]:
        """Hash one shard's cells; yields nothing."""
        yield from ()
        store = Store(read_frame(self.store))
        cells = store.read_cells(np.arange(*store.first_rows[shard : shard + 2]))
        identities = unmixed(store.cell_keys(shard)).astype(np.int64)  # source * 2^40 + row
        with committed(self.found(shard), self.work) as folder:
            write_hashes(folder / HASHES, content_hashes(cells), 0, identities)


def unmixed(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Undo ``cell_keys.mix``: each of its steps can be turned back."""
    first, second = (np.uint64(pow(factor, -1, 2**64)) for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
    keys = (keys ^ (keys >> np.uint64(31)) ^ (keys >> np.uint64(62))) * second
    keys = (keys ^ (keys >> np.uint64(27)) ^ (keys >> np.uint64(54))) * first
    return (keys ^ (keys >> np.uint64(30)) ^ (keys >> np.uint64(60))) - np.uint64(0x9E3779B97F4A7C15)
