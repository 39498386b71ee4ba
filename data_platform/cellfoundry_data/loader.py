"""Random-order training batches from a store, the same order on any number of ranks, resumable at any batch.

An epoch's order is a function of (seed, epoch): the store's chunks in random order, cut into windows of
``window_chunks``; a window's cells in random order; the windows' cells one after another, cut into batches.
Batch ``g`` goes to rank ``g % world_size``. Cells were already shuffled over the whole store when it was
written, so a window (128 chunks, about 7,800 cells, 100 MB decoded) is a sample of all sources. A row is
decoded straight into its place and a batch is a view of its window; while one window is handed out the next
is decoded in the background.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.store.cell_keys import in_validation, mix
from cellfoundry_data.store.reader import Store, open_store

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class _Epoch:
    """One epoch's windows: chunk numbers of each, and cells before each (windows + 1,)."""

    windows: list[npt.NDArray[np.int64]]
    first_places: npt.NDArray[np.int64]


class ShardDataset:
    """One rank's share of a store's cells, as an iterable of ``CellBatch`` whose row ids are store rows.

    Every rank gets the same number of batches: the last ``batches % world_size`` batches of an epoch's order
    are left out, so with one rank every cell comes exactly once an epoch. The very last batch may be short.
    Iterating starts at the beginning of the epoch, or after ``load_state_dict`` where that state was taken;
    at its end the next epoch begins. Pickles.

    Args:
        store: an open store or its path.
        batch_cells: cells in a batch.
        seed: of the order; the split does not depend on it.
        rank: this process, 0 to ``world_size - 1``.
        world_size: processes that share the cells.
        split: "train" or "validation" for the part that a hash of each cell puts there; None for all cells.
        validation_share: share of the cells in the validation split, between 0 and 1.
        obs_columns: columns of the store's obs to hand out with each batch.
        window_chunks: chunks that are mixed at a time; memory grows with it.

    Raises:
        DataError: an argument out of range, an obs column that the store lacks, fewer batches than ranks, a
            damaged store.
    """

    def __init__(
        self,
        store: Store | str | Path,
        *,
        batch_cells: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        split: Split | None = None,
        validation_share: float = 0.05,
        obs_columns: Sequence[str] = (),
        window_chunks: int = 128,
    ) -> None:
        self.store = store if isinstance(store, Store) else open_store(store)
        self.batch_cells, self.seed, self.rank, self.world_size = batch_cells, seed, rank, world_size
        self.split, self.validation_share, self.window_chunks = split, validation_share, window_chunks
        self._check_arguments()
        self._obs = {name: _ObsColumn.read(self.store, name) for name in obs_columns}

        shards = [self.store.shard(index) for index in range(len(self.store.manifest["shards"]))]
        self._chunk_shard = np.repeat(np.arange(len(shards)), [shard.chunks for shard in shards])
        self._chunk_in_shard = np.concatenate([np.arange(shard.chunks) for shard in shards])
        self._chunk_cells = np.concatenate([self._cells_of_chunks(index) for index in range(len(shards))])
        self.n_cells = int(self._chunk_cells.sum())
        if self._batches < world_size:
            raise DataError(
                f"the {split or 'whole'} split of {self.store.path} has {self.n_cells:,} cells, too few for "
                f"a batch of {batch_cells} on each of {world_size} ranks: use smaller batches or fewer ranks."
            )
        self.epoch = 0
        self._handed_out = 0
        self._start = 0

    def __len__(self) -> int:
        """Batches that this rank gets in a whole epoch."""
        return self._batches // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; the present one keeps a position that was loaded."""
        if epoch != self.epoch:
            self.epoch, self._handed_out, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands after the last batch handed out; the same on every rank after the same
        number of steps.
        """
        return {"epoch": self.epoch, "batches": self._handed_out, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that were handed out, on any number of ranks.

        Raises:
            DataError: the state was taken from another store, seed, split or batch size.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise DataError(
                    f"the loader cannot resume: {name} was {state.get(name)!r} when the state was saved and "
                    f"is {value!r} now; resume with the same data settings, or start a new run."
                )
        self.epoch, self._start = state["epoch"], state["batches"]
        if self._batches - self._start < self.world_size:
            self.epoch, self._start = self.epoch + 1, 0
        self._handed_out = self._start

    def __iter__(self) -> Iterator[CellBatch]:
        start, self._start = self._start, 0
        self._handed_out = start
        for batch in self._batches_from(start):
            self._handed_out += self.world_size
            yield batch
        self.epoch, self._handed_out = self.epoch + 1, 0

    def _batches_from(self, start: int) -> Iterator[CellBatch]:
        """This rank's batches from the epoch's batch number ``start`` on."""
        rest: CellBatch | None = None
        for window in self._windows_from(start):
            first = 0
            if rest is not None:
                first = min(self.batch_cells - len(rest), len(window))
                rest = _concatenate(rest, _slice(window, 0, first))
                if len(rest) < self.batch_cells:
                    continue
                yield rest
            while first + self.batch_cells <= len(window):
                yield _slice(window, first, first + self.batch_cells)
                first += self.batch_cells
            rest = _slice(window, first, len(window)) if first < len(window) else None
        if rest is not None:
            yield rest

    def _windows_from(self, start: int) -> Iterator[CellBatch]:
        """This rank's cells of each window in their final order, decoded one window ahead."""
        epoch = self._plan(self.epoch)
        end = start + (self._batches - start) // self.world_size * self.world_size
        jobs = []
        for window in range(len(epoch.windows)):
            batch = np.arange(*epoch.first_places[window : window + 2]) // self.batch_cells
            mine = (batch >= start) & (batch < end) & ((batch - start) % self.world_size == self.rank)
            if mine.any():
                jobs.append((window, mine))
        with ThreadPoolExecutor(1, thread_name_prefix="cellfoundry-loader") as background:
            ahead = None
            for window, mine in jobs:
                decoding = background.submit(
                    self._decode, epoch.windows[window], mine, _salt(self.seed, self.epoch, 1 + window)
                )
                if ahead is not None:
                    yield ahead.result()
                ahead = decoding
            if ahead is not None:
                yield ahead.result()

    def _plan(self, number: int) -> _Epoch:
        order = _permutation(len(self._chunk_cells), _salt(self.seed, number, 0))
        windows = [
            order[first : first + self.window_chunks] for first in range(0, len(order), self.window_chunks)
        ]
        cells = [self._chunk_cells[window].sum() for window in windows]
        return _Epoch(windows, np.concatenate([[0], np.cumsum(cells)]).astype(np.int64))

    def _decode(
        self, chunks: npt.NDArray[np.int64], mine: npt.NDArray[np.bool_], salt: np.uint64
    ) -> CellBatch:
        """The cells of a window at the places ``mine`` of its random order."""
        rows, lengths, eligible = self._rows_of(chunks)
        candidates = np.flatnonzero(eligible)
        chosen = candidates[_permutation(len(candidates), salt)[mine]]
        indptr = np.concatenate([[0], np.cumsum(lengths[chosen])]).astype(np.int64)
        destination = np.full(len(rows), -1, np.int64)
        destination[chosen] = indptr[:-1]

        gene_ids, counts = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
        first = 0
        for chunk in chunks:
            shard, local = self.store.shard(self._chunk_shard[chunk]), self._chunk_in_shard[chunk]
            last = first + int(np.diff(shard.first_rows[local : local + 2])[0])
            if (destination[first:last] >= 0).any():
                shard.decode_chunk(local, destination[first:last], gene_ids, counts)
            first = last
        row_ids = rows[chosen]
        obs = {name: column.values_at(row_ids) for name, column in self._obs.items()}
        return CellBatch(indptr, gene_ids, counts, row_ids, obs)

    def _rows_of(
        self, chunks: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Store row, entries and membership of the split of every row of ``chunks``, in their order."""
        rows, lengths, eligible = [], [], []
        for chunk in chunks:
            index, local = self._chunk_shard[chunk], self._chunk_in_shard[chunk]
            shard = self.store.shard(index)
            first, last = shard.first_rows[local : local + 2]
            rows.append(np.arange(first, last) + self.store.first_rows[index])
            lengths.append(shard.row_nnz[first:last].astype(np.int64))
            eligible.append(self._in_split(shard.cell_key[first:last]))
        return np.concatenate(rows), np.concatenate(lengths), np.concatenate(eligible)

    def _cells_of_chunks(self, index: int) -> npt.NDArray[np.int64]:
        """Cells of the split in each chunk of a shard."""
        shard = self.store.shard(index)
        before = np.concatenate([[0], np.cumsum(self._in_split(shard.cell_key))])
        return np.diff(before[shard.first_rows])

    def _in_split(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        if self.split is None:
            return np.ones(len(keys), bool)
        return in_validation(keys, self.validation_share) == (self.split == "validation")

    @property
    def _batches(self) -> int:
        """Batches of an epoch over all ranks."""
        return -(-self.n_cells // self.batch_cells)

    def _identity(self) -> dict[str, Any]:
        """What the order depends on: a state fits no other dataset."""
        return {
            "cells": self.store.n_cells,
            "vocabulary": self.store.manifest["vocabulary"]["hash"],
            "store_seed": self.store.manifest["seed"],
            "seed": self.seed,
            "batch_cells": self.batch_cells,
            "window_chunks": self.window_chunks,
            "split": self.split,
            "validation_share": self.validation_share,
        }

    def _check_arguments(self) -> None:
        if self.batch_cells < 1 or self.window_chunks < 1:
            raise DataError("batch_cells and window_chunks must be at least 1.")
        if not 0 <= self.rank < self.world_size:
            raise DataError(f"rank {self.rank} is not one of {self.world_size} ranks: ranks count from 0.")
        if self.split not in (None, "train", "validation"):
            raise DataError(f"split {self.split!r} is unknown: use 'train', 'validation' or None.")
        if self.split and not 0 < self.validation_share < 1:
            raise DataError(f"validation_share {self.validation_share} must lie between 0 and 1.")


@dataclass(frozen=True)
class _ObsColumn:
    """An obs column held by value and position, so that a text column costs one number a cell."""

    values: npt.NDArray[Any]
    positions: npt.NDArray[np.integer[Any]] | None

    @classmethod
    def read(cls, store: Store, name: str) -> _ObsColumn:
        columns = store.obs.column_names
        if name not in columns:
            raise DataError(f"{store.path} has no obs column {name!r}: it has {', '.join(columns)}.")
        column = store.obs[name].combine_chunks()
        if not pa.types.is_dictionary(column.type):
            return cls(column.to_numpy(zero_copy_only=False), None)
        values = np.array([*column.dictionary.to_pylist(), None], object)
        return cls(values, column.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False))

    def values_at(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return self.values[rows] if self.positions is None else self.values[self.positions[rows]]


def _salt(seed: int, epoch: int, part: int) -> np.uint64:
    """A number for one permutation of the order: part 0 is the chunks, part 1 + w the cells of window w."""
    salt = np.zeros(1, np.uint64)
    for number in (seed, epoch, part):
        salt = mix(salt ^ np.uint64(number % 2**64))
    return salt[0]


def _permutation(size: int, salt: np.uint64) -> npt.NDArray[np.int64]:
    """0 to ``size - 1`` sorted by a hash: the same on every machine and in every numpy release."""
    return np.argsort(mix(np.arange(size, dtype=np.uint64) ^ salt), kind="stable")


def _slice(cells: CellBatch, first: int, last: int) -> CellBatch:
    """The cells ``first`` to ``last - 1``, as views."""
    start, stop = cells.indptr[first], cells.indptr[last]
    return CellBatch(
        cells.indptr[first : last + 1] - start,
        cells.gene_ids[start:stop],
        cells.counts[start:stop],
        cells.row_ids[first:last],
        {name: column[first:last] for name, column in cells.obs.items()},
    )


def _concatenate(head: CellBatch, tail: CellBatch) -> CellBatch:
    return CellBatch(
        np.concatenate([head.indptr, tail.indptr[1:] + head.indptr[-1]]),
        np.concatenate([head.gene_ids, tail.gene_ids]),
        np.concatenate([head.counts, tail.counts]),
        np.concatenate([head.row_ids, tail.row_ids]),
        {name: np.concatenate([head.obs[name], tail.obs[name]]) for name in head.obs},
    )
