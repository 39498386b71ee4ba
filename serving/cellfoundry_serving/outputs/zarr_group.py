"""``.zarr``: a group with ``embedding`` (chunked by rows), ``cells`` and, for a gene axis, ``genes``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr

from cellfoundry_serving.outputs.base import EmbeddingWriter, OutputSpec

CHUNK_BYTES = 16 * 2**20


class ZarrWriter(EmbeddingWriter):
    """Chunks span whole rows and about 16 MiB, so a reader of one cell touches one chunk.

    Blocks rarely end where a chunk ends; rows of an unfinished chunk wait for the next block.
    """

    def __init__(self, path: Path, spec: OutputSpec) -> None:
        super().__init__(path, spec)
        group = zarr.open_group(path, mode="w")
        group.attrs.update({"cellfoundry": spec.provenance})
        row_bytes = 4 * math.prod(spec.shape[1:])
        self._chunk_rows = max(1, min(spec.shape[0], CHUNK_BYTES // row_bytes))
        self._embedding = group.create_array(
            "embedding", shape=spec.shape, chunks=(self._chunk_rows, *spec.shape[1:]), dtype="float32"
        )
        self._write_names(group, "cells", [str(name) for name in spec.obs.index])
        if spec.output != "cell":
            self._write_names(group, "genes", spec.genes)
        self._waiting: list[npt.NDArray[np.float32]] = []
        self._written = 0

    @staticmethod
    def _write_names(group: zarr.Group, name: str, values: Sequence[str]) -> None:
        group.create_array(name, data=np.array(values, dtype=np.dtypes.StringDType()))

    def write(self, first: int, block: npt.NDArray[np.float32]) -> None:
        """Writes every chunk that the block completes."""
        self._waiting.append(block)
        rows = first + len(block) - self._written
        if rows >= self._chunk_rows or self._written + rows == self.spec.shape[0]:
            self._flush(whole_chunks=self._written + rows < self.spec.shape[0])

    def _flush(self, *, whole_chunks: bool) -> None:
        rows = np.concatenate(self._waiting)
        ready = len(rows) - len(rows) % self._chunk_rows if whole_chunks else len(rows)
        self._embedding[self._written : self._written + ready] = rows[:ready]
        self._written += ready
        self._waiting = [rows[ready:]]

    def close(self) -> None:
        """Nothing is held open."""
