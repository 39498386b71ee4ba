"""Finished embeddings of cells, by their content: the least recently used go first."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.pieces import Conventions

ENTRY_BYTES = 320  # of a key, an array's header and their places in the dictionary: CPython 3.11, measured


class EmbeddingCache:
    """Rows by key, in at most ``max_bytes`` of memory; used inside one event loop.

    Attributes:
        bytes: held now.
    """

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._rows: OrderedDict[bytes, npt.NDArray[np.float32]] = OrderedDict()

    def get(self, key: bytes) -> npt.NDArray[np.float32] | None:
        """The row (width,) of a cell, or None."""
        row = self._rows.get(key)
        if row is None:
            return None
        self._rows.move_to_end(key)
        return row

    def put(self, key: bytes, row: npt.NDArray[np.float32]) -> None:
        """Keeps ``row``, which may push others out; one that alone is too large is not kept.

        It must own its memory: a view would hold its whole batch.
        """
        size = row.nbytes + ENTRY_BYTES
        if key in self._rows or size > self._max_bytes:
            return
        self._rows[key] = row
        self.bytes += size
        while self.bytes > self._max_bytes:
            _, oldest = self._rows.popitem(last=False)
            self.bytes -= oldest.nbytes + ENTRY_BYTES


def cell_keys(cells: CellBatch, conventions: Conventions, model: bytes) -> list[bytes]:
    """A digest of each cell's genes, counts and conventions and of ``model``, 16 bytes: all that its embedding
    depends on.
    """
    common = hashlib.blake2b(repr((model, conventions)).encode(), digest_size=16)
    keys = []
    for first, last in zip(cells.indptr[:-1], cells.indptr[1:], strict=True):
        digest = common.copy()
        digest.update(cells.gene_ids[first:last].tobytes())
        digest.update(cells.counts[first:last].tobytes())
        keys.append(digest.digest())
    return keys
