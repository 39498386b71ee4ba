"""Sums of results by group of cells, for means that do not depend on who computed which part when.

A value is added as a whole number of 2^-32: such sums are exact in 64 bits, so their order cannot matter, and rounding
costs 1.2e-10 of a value, far below what float32 tells apart in values of that kind.

Legend: G groups.
"""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfoundry_data.ingest.work_folder import write_json
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.parts.work_folder import SUMS_STATE, WorkFolder

SCALE = 2.0**32
LIMIT = 2.0**63 / SCALE
MOST_BYTES = 8 * 2**30
"""Of sums in memory."""
CHECKPOINT_S = 60.0
CHECKPOINT_SHARE = 20
"""Between two checkpoints at least so many times as long as one takes."""


def groups_of(obs: pd.DataFrame, column: str) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Sorted values of an obs column as text, and the group of each cell, (cells,), -1 where the value is missing.

    Raises:
        ServingError: no such column, or no value in it.
    """
    if column not in obs.columns:
        known = ", ".join(map(str, obs.columns)) or "no column"
        raise ServingError(f"--mean-by {column}: obs of the source has {known}; name one of its columns.")
    values = obs[column]
    if isinstance(values, pd.DataFrame):
        raise ServingError(
            f"--mean-by {column}: obs of the source has {values.shape[1]} columns of that name; rename all but one."
        )
    codes, names = pd.factorize(values.astype(object).map(str, na_action="ignore"), sort=True)
    if not len(names):
        raise ServingError(f"--mean-by {column}: the column is empty in every cell; name another one.")
    return [str(name) for name in names], codes.astype(np.int64)


class GroupSums:
    """Sums and numbers of the cells that have a group and counts.

    Attributes:
        sums: int64, (G, *result of a cell), in units of 2^-32.
        counts: int64, (G,).
    """

    def __init__(self, n_groups: int, row_shape: Sequence[int], n_cells: int) -> None:
        self._limit = LIMIT / max(1, n_cells)
        self.sums = np.zeros((n_groups, *row_shape), np.int64)
        self.counts = np.zeros(n_groups, np.int64)

    def add(self, block: npt.NDArray[np.float32], groups: npt.NDArray[np.int64]) -> None:
        """Rows of results and the group of each, (rows,); rows of NaN and those of group -1 are left out."""
        scaled = np.empty(block.shape[1:], np.float64)
        for row, group in zip(block, groups.tolist(), strict=True):
            if group < 0 or np.isnan(row.flat[0]):
                continue
            if not np.abs(row).max() < self._limit:
                raise ServingError(
                    f"A result as large as {np.abs(row).max():g} cannot be averaged over that many cells; check the "
                    "model's weights."
                )
            np.multiply(row, SCALE, out=scaled)
            np.rint(scaled, out=scaled)
            self.sums[group] += scaled.astype(np.int64)
            self.counts[group] += 1

    def means(self) -> npt.NDArray[np.float32]:
        """float32, (G, *result of a cell); NaN for a group without cells."""
        means = np.full(self.sums.shape, np.nan, np.float32)
        for group in np.flatnonzero(self.counts):
            means[group] = self.sums[group] / (SCALE * self.counts[group])
        return means


def check_sums_fit(n_groups: int, row_shape: Sequence[int]) -> None:
    """Raises ServingError where the sums would not fit into memory."""
    size = 8 * n_groups * math.prod(row_shape)
    if size > MOST_BYTES:
        raise ServingError(
            f"The sums of {n_groups:,} groups take {size / 1e9:,.1f} GB of memory: average by a column of fewer "
            "values, or choose genes with --genes."
        )


class SumsCheckpoint:
    """Running sums in memory, saved every minute or so with the parts that they hold.

    Attributes:
        sums: of all parts in ``parts``.
        parts: facts of the parts, by number.
    """

    def __init__(self, work: WorkFolder, sums: GroupSums) -> None:
        self._work, self._state = work, work.inside / SUMS_STATE
        self.sums = sums
        self.parts: dict[int, dict[str, Any]] = {}
        self._saved, self._took = time.monotonic(), 0.0
        if self._state.exists():
            state = work.read(self._state)
            sums.sums[...] = np.load(work.inside / state["file"], allow_pickle=False)
            sums.counts[...] = state["counts"]
            self.parts = {int(part): facts for part, facts in state["parts"].items()}
        for part, facts in work.committed().items():
            if part not in self.parts:
                self.fold(part, facts)

    def fold(self, part: int, facts: dict[str, Any]) -> None:
        """Add the sums that a worker has left of a part."""
        of_part = facts["sums"]
        self.sums.sums[of_part["groups"]] += np.load(self._work.sums_of(part), mmap_mode="r")
        self.sums.counts[of_part["groups"]] += of_part["counts"]
        self.commit(part, {name: value for name, value in facts.items() if name != "sums"})

    def commit(self, part: int, facts: dict[str, Any]) -> None:
        """The sums hold all of ``part`` now."""
        self.parts[part] = facts
        if time.monotonic() - self._saved > max(CHECKPOINT_S, CHECKPOINT_SHARE * self._took):
            self.save()

    def save(self) -> None:
        """Commit to the disk; the older sums and those of single parts go when the new ones are there."""
        began = time.monotonic()
        file = self._work.inside / f"sums-{len(self.parts):06d}.npy"
        save_array(file, self.sums.sums)
        state = {"file": file.name, "counts": self.sums.counts.tolist(), "parts": self.parts}
        write_json(self._state, state)
        for older in self._work.inside.glob("sums-*.npy"):
            if older != file:
                older.unlink()
        self._work.forget(self.parts)
        self._saved = time.monotonic()
        self._took = self._saved - began


def save_array(path: Path, array: npt.NDArray[np.int64]) -> None:
    """Write an .npy file that has its name only when all of it is on the disk."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with temporary.open("wb") as stream:
        np.save(stream, array)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
