"""``ShardDataset``: a rank's random batches from a store, resumable at any batch."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.loader.batching import Batches, Batching, FixedCells, TokenBudget
from cellfoundry_data.loader.obs import ObsColumn
from cellfoundry_data.loader.order import EpochOrder, Order, ShuffledChunks
from cellfoundry_data.loader.permutation import STEPS, salt
from cellfoundry_data.loader.sampling import weighted_draws
from cellfoundry_data.loader.selection import Split, select
from cellfoundry_data.loader.steps import Cursor, Plan, assemble, one_ahead, plans, whole_steps
from cellfoundry_data.loader.windows import BufferPool, decode, row_nnz
from cellfoundry_data.store import Store, open_store
from cellfoundry_data.store.cache import CACHE_BYTES
from cellfoundry_data.store.format import INDEX, file_entries

ORDER = 2
"""Number of the rule by which seed and epoch give an order; a state of another rule is refused."""

Weights = Mapping[str, Mapping[Any, float] | Literal["balanced", "proportional"]]


class ShardDataset:
    """One rank's share of a store's cells, as an iterable of ``CellBatch`` whose row ids are store rows.

    The order is a function of (seed, epoch) alone. Batch ``g`` of an epoch goes to rank ``g % world_size``, so
    every rank gets the same number of batches: those at an epoch's end that make no whole step of all ranks are
    left out. With ``whole_steps_of`` a step has so many batches whatever the number of ranks, and the steps are the
    same ones on any number of them. With ``batch_cells`` all batches of a step have as many cells: the short one that
    may end an epoch is left out too, but not where a step is one batch, and every cell is given once an epoch unless
    ``weights`` are given. Iterating starts at the beginning of the epoch, or after ``load_state_dict`` where that state
    was taken; at its end the next epoch begins. Batches are views of reused memory that is never reused while a
    batch, or a tensor made of it, is alive.

    Pickles. For a torch DataLoader, ``loader.torch.TorchLoader`` wraps it: in a worker process it gives the worker's
    part, so that the DataLoader hands out the same batches in the same order with any number of workers. In Ray Train:

        context = ray.train.get_context()
        ShardDataset(store, rank=context.get_world_rank(), world_size=context.get_world_size(), ...)

    Args:
        store: an open store, or its path or URL.
        batch_cells: cells in a batch; this or ``batch_tokens``.
        batch_tokens: most tokens of a batch, cells of nearly one length together (``batching.TokenBudget``).
        special_tokens: tokens of each cell besides its genes, for ``batch_tokens``.
        step_batches: for ``batch_tokens``: how many consecutive batches have cells of nearly equal lengths; the
            number of ranks is best, or a multiple. A step lasts as long as its slowest rank: on lengths as in
            tissue, ranks' squared lengths (attention) are on average 0.99 of the slowest one's on 3 to 16 ranks
            with as many step_batches and 0.9 on 64, but with 8 step_batches 0.94 on 3 ranks, 0.8 on 16 and 0.6 on
            64; so they are, 0.8 for 8 ranks, up to the end of an epoch that was resumed after batches that are
            no multiple. Token totals are 0.98 or more of the slowest one's in all these cases.
        whole_steps_of: batches of a step over all ranks; None for one a rank. Batch ``j`` of a step goes to rank
            ``j % world_size``, so where it is no multiple of ``world_size`` the last ranks get one less than the first.
        seed: of the order; the split does not depend on it.
        rank: this process, 0 to ``world_size - 1``.
        world_size: processes that share the cells.
        split: "train" or "validation" for the part that a hash puts there; None for all cells.
        validation_share: share of the validation split, between 0 and 1.
        split_by: obs column (such as donor) whose groups stay on one side of the split; None splits by cell.
        where: filters, {obs column: value, list of values, or pair (low, high) with both included}; None stands
            for "missing".
        weights: {obs column: weights}: cells are drawn (``sampling``) with categories' shares in proportion to
            {value: weight}, which must name every value there is; "balanced" for equal shares, "proportional" for
            those in the store. Cells without a value are left out unless the weights name None.
        stratified: with ``weights`` and ``batch_cells``, every batch holds the expected number of each category,
            rounded up or down.
        obs_columns: obs columns to hand out with each batch.
        window_chunks: chunks that are mixed at a time; memory grows with it.
        cache: folder for what is read of a remote store.
        cache_bytes: about what it may take of the disk, 64 GiB by default; as large as the store, an epoch after the
            first fetches nothing.

    Attributes:
        store: the open store.
        n_cells: cells of an epoch.
        epoch: number of the present epoch.

    Raises:
        DataError: an argument out of range or at odds with another, an obs column or value that the store lacks,
            no cell left, fewer batches than ranks, a damaged store.
    """

    def __init__(
        self,
        store: Store | str | Path,
        *,
        batch_cells: int | None = None,
        batch_tokens: int | None = None,
        special_tokens: int = 0,
        step_batches: int = 8,
        whole_steps_of: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        split: Split | None = None,
        validation_share: float = 0.05,
        split_by: str | None = None,
        where: Mapping[str, Any] | None = None,
        weights: Weights | None = None,
        stratified: bool = False,
        obs_columns: Sequence[str] = (),
        window_chunks: int = 128,
        cache: Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.batch_cells, self.batch_tokens = batch_cells, batch_tokens
        self.special_tokens, self.step_batches = special_tokens, step_batches
        self.whole_steps_of = whole_steps_of
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.split, self.validation_share, self.split_by = split, validation_share, split_by
        self.where, self.weights, self.stratified = where, weights, stratified
        self.window_chunks = window_chunks
        self._check_arguments()
        self.store = (
            store if isinstance(store, Store) else open_store(store, cache=cache, cache_bytes=cache_bytes)
        )
        self._manifest = self.store.manifest
        self._obs = {name: ObsColumn.read(self.store, name) for name in obs_columns}
        self._order = self._make_order()
        self.n_cells = self._order.n_cells
        self._epoch_order: tuple[int, EpochOrder] | None = None
        self._pool = BufferPool()

        self.epoch = 0
        self._next, self._resume_at = (0, Cursor()), (0, Cursor())
        if not self._makes_a_step():
            raise DataError(
                f"the {split or 'whole'} split of {self.store.path} has {self.n_cells:,} cells, too few for "
                f"a batch of {batch_cells or f'{batch_tokens:,} tokens'} on each of {world_size} ranks"
                f"{'' if whole_steps_of is None else f', {whole_steps_of} batches in a step'}: "
                "use smaller batches or fewer ranks."
            )

    def __len__(self) -> int:
        """Batches that this rank gets in a whole epoch.

        Raises:
            TypeError: with ``batch_tokens`` the number differs from epoch to epoch.
        """
        if self.batch_cells is None:
            raise TypeError("the number of batches of a token budget is not known before the epoch's end")
        if self._step == 1:
            return -(-self.n_cells // self.batch_cells)
        return self.n_cells // self.batch_cells // self._step * self._own_batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; the present one keeps a position that was loaded."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.rewind()

    def rewind(self) -> None:
        """Forget a position that was loaded: iterating begins with the present epoch's first batch."""
        self._next = self._resume_at = (0, Cursor())

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands after the last batch handed out: plain numbers and texts, the same on every rank
        after the same number of steps.
        """
        batches, cursor = self._next
        position = asdict(cursor) | {"drawn": list(cursor.drawn)}
        return {"epoch": self.epoch, "batches": batches, **position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that were handed out, on any number of ranks; nothing before is read again.

        Raises:
            DataError: the state was taken from another store, seed, split, selection or batch size.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise DataError(
                    f"the loader cannot resume: {name} was {state.get(name)!r} when the state was saved and "
                    f"is {value!r} now; resume with the same data settings, or start a new run."
                )
        position = {field.name: state[field.name] for field in fields(Cursor)}
        cursor = Cursor(**position | {"drawn": tuple(state["drawn"])})
        self.epoch, self._resume_at = state["epoch"], (state["batches"], cursor)
        if not self._makes_a_step():
            self.epoch, self._resume_at = self.epoch + 1, (0, Cursor())
        self._next = self._resume_at

    def __iter__(self) -> Iterator[CellBatch]:
        (start, cursor), self._resume_at = self._resume_at, (0, Cursor())
        self._next = start, cursor
        self._check_store()
        windows = one_ahead(self._decoded(start, cursor, *_worker()))
        for number, batch in assemble(self._entered(windows)):
            place = (number - start) % self._step
            is_last = place + self.world_size >= self._step
            # Where all ranks stand once each has this batch: at the next one of rank 0.
            following = number - place + (self._step if is_last else place - self.rank + self.world_size)
            self._next = following, [each for each in self._cursors if each.first_batch <= following][-1]
            yield batch
        self.epoch += 1
        self._next = 0, Cursor()

    def _decoded(
        self, start: int, cursor: Cursor, worker: int, workers: int
    ) -> Iterator[tuple[CellBatch, Batches, tuple[Cursor, ...]]]:
        """This rank's (and worker's) cells of each window, where it has some."""
        for work in whole_steps(self._plans(cursor), start, self._step):
            batches = work.batches
            since = batches.number - start
            step, place = np.divmod(since, self._step)
            mine = (since >= 0) & (batches.number < work.end) & (place % self.world_size == self.rank)
            mine &= (step * self._own_batches + place // self.world_size) % workers == worker
            if mine.any():
                own = Batches(
                    batches.rows[mine], batches.number[mine], batches.next_number, batches.open_number
                )
                yield decode(self.store, own.rows, self._obs, self._pool), own, work.cursors

    def _entered(
        self, windows: Iterator[tuple[CellBatch, Batches, tuple[Cursor, ...]]]
    ) -> Iterator[tuple[CellBatch, Batches]]:
        """The windows, each noted as the one that batches now come from."""
        for cells, batches, self._cursors in windows:
            yield cells, batches

    def _plans(self, cursor: Cursor) -> Iterator[Plan]:
        if self._epoch_order is None or self._epoch_order[0] != self.epoch:
            self._epoch_order = self.epoch, self._order.epoch(self.epoch)
        return plans(self._epoch_order[1], self._batching, cursor, salt(self.seed, self.epoch, STEPS))

    def _makes_a_step(self) -> bool:
        """Whether a batch for every rank is left from where iterating would begin."""
        start, cursor = self._resume_at
        plans = self._plans(cursor)
        return any(plan.complete(self._step) - start >= self._step for plan in plans)

    @property
    def _step(self) -> int:
        """Batches of a step over all ranks."""
        return self.whole_steps_of or self.world_size

    @property
    def _own_batches(self) -> int:
        """This rank's batches of a step."""
        return len(range(self.rank, self._step, self.world_size))

    @property
    def _batching(self) -> Batching:
        if self.batch_cells is not None:
            return FixedCells(self.batch_cells)
        assert self.batch_tokens is not None
        nnz = functools.partial(row_nnz, self.store)
        return TokenBudget(self.batch_tokens, self.special_tokens, self.step_batches, nnz)

    def _make_order(self) -> Order:
        store = self.store
        selection = select(
            store,
            split=self.split,
            validation_share=self.validation_share,
            split_by=self.split_by,
            where=self.where,
        )
        if self.weights is None:
            return ShuffledChunks(
                store.chunk_first_row,
                selection,
                window_chunks=self.window_chunks,
                seed=self.seed,
            )
        ((column, weights),) = self.weights.items()
        return weighted_draws(
            store,
            column,
            weights,
            selection,
            window_cells=self.window_chunks * -(-store.n_cells // store.n_chunks),
            batch_cells=self.batch_cells,
            stratified=self.stratified,
            seed=self.seed,
        )

    def _check_store(self) -> None:
        """Raise DataError where unpickling opened another store than the one this dataset was made for."""
        if self.store.manifest != self._manifest:
            raise DataError(
                f"the store {self.store.path} was replaced after this dataset was made: make the dataset anew."
            )

    def _identity(self) -> dict[str, Any]:
        """What the order depends on: a state fits no other dataset."""
        return {
            "order": ORDER,
            "cells": self.store.n_cells,
            "vocabulary": self._manifest["vocabulary"]["hash"],
            "store_seed": self._manifest["seed"],
            "store_shards": _shards_digest(self._manifest),
            "seed": self.seed,
            "batch_cells": self.batch_cells,
            "batch_tokens": self.batch_tokens,
            "special_tokens": self.special_tokens,
            "step_batches": self.step_batches,
            "whole_steps_of": self.whole_steps_of,
            "window_chunks": self.window_chunks,
            "split": self.split,
            "validation_share": self.validation_share,
            "split_by": self.split_by,
            "where": _text(self.where),
            "weights": _text(self.weights),
            "stratified": self.stratified,
        }

    def _check_arguments(self) -> None:
        if (self.batch_cells is None) == (self.batch_tokens is None):
            raise DataError("give either batch_cells or batch_tokens, the size of a batch.")
        sizes = (self.batch_cells, self.batch_tokens, self.step_batches, self.window_chunks)
        if min(size for size in sizes if size is not None) < 1 or self.special_tokens < 0:
            raise DataError(
                "batch_cells, batch_tokens, step_batches and window_chunks must be at least 1, special_tokens at "
                "least 0."
            )
        if self.whole_steps_of is not None and self.whole_steps_of < self.world_size:
            raise DataError(
                f"whole_steps_of {self.whole_steps_of} must be at least world_size {self.world_size}: every rank needs "
                "a batch in a step."
            )
        if not 0 <= self.rank < self.world_size:
            raise DataError(f"rank {self.rank} is not one of {self.world_size} ranks: ranks count from 0.")
        if self.split not in (None, "train", "validation"):
            raise DataError(f"split {self.split!r} is unknown: use 'train', 'validation' or None.")
        if self.split and not 0 < self.validation_share < 1:
            raise DataError(f"validation_share {self.validation_share} must lie between 0 and 1.")
        if self.where is not None and not isinstance(self.where, Mapping):
            raise DataError(f"where is {self.where!r}: give filters as {{obs column: value}}.")
        if self.weights is not None and (not isinstance(self.weights, Mapping) or len(self.weights) != 1):
            raise DataError("weights must name one obs column: {column: {value: weight}}.")
        if self.stratified and (self.weights is None or self.batch_cells is None):
            raise DataError("stratified batches need weights and a fixed number of cells, batch_cells.")


def _shards_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over the checksums of the index, which hold those of all shards: tells stores of equal size apart."""
    entries = [entry for entry in file_entries(manifest["files"]) if entry.path.startswith(f"{INDEX}/")]
    return hashlib.sha256("".join(entry.sha256 for entry in entries).encode()).hexdigest()


def _text(setting: object) -> str:
    """A setting in words that do not depend on the order of a mapping's keys."""
    if isinstance(setting, Mapping):
        return "{" + ", ".join(sorted(f"{key!r}: {_text(value)}" for key, value in setting.items())) + "}"
    return repr(setting)


def _worker() -> tuple[int, int]:
    """Number of this process among the workers of a torch DataLoader, and how many they are; (0, 1) outside of one."""
    torch_data = sys.modules.get("torch.utils.data")
    info = torch_data.get_worker_info() if torch_data else None
    return (info.id, info.num_workers) if info else (0, 1)
