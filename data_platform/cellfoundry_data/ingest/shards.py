"""Second pass: buckets of spilled cells, each merged from the runs and written as one shard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cellfoundry_data.ingest.duplicate_keys import DuplicateSearch
from cellfoundry_data.ingest.obs_columns import DUPLICATE, dictionary_encoded, with_own_columns
from cellfoundry_data.ingest.runs import merge, read_slice
from cellfoundry_data.ingest.work_folder import put, scratch_folder, write_json
from cellfoundry_data.store.encoded_rows import EncodedRows
from cellfoundry_data.store.format import OBS, SHARDS, Profile, Values, obs_file
from cellfoundry_data.store.replace import sync_tree
from cellfoundry_data.store.writer import write_encoded_shard

CELLS_PER_SHARD = 16_384
"""About 26 M entries at 1,600 genes a cell: a worker merges and encodes them in 1 GB."""

ENTRIES_PER_SHARD = 2**25
"""On average at most: cells with more genes make smaller shards, so that a worker's memory stays bounded."""


@dataclass(frozen=True)
class ShardBuild:
    """What the tasks of the second pass share.

    Attributes:
        runs: every spilled run, its path without suffix.
        duplicates: which cells equal an earlier one.
        n_buckets: shards to write, at most.
        generation: 0 for a new store, then a number more for each append; part of the shards' names.
        folder: the store under construction.
        entries: where a file for each bucket tells that it is done.
        work: the folder of the whole ingest.
        values: "counts" or "float32".
        profile: "compact" or "fast".
    """

    runs: Sequence[Path]
    duplicates: DuplicateSearch
    n_buckets: int
    generation: int
    folder: Path
    entries: Path
    work: Path
    values: Values
    profile: Profile

    def entry(self, bucket: int) -> Path:
        """The file that tells that the bucket is done: its shard's row of the index, or nothing."""
        return self.entries / f"{bucket:06d}.json"

    def index_rows(self) -> list[dict[str, Any]]:
        """The shards' rows of the index, in the order of the buckets; a bucket without cells has none."""
        rows = [json.loads(self.entry(bucket).read_bytes()) for bucket in range(self.n_buckets)]
        return [row for row in rows if row]

    def write(self, bucket: int) -> Iterator[int]:
        """Write the bucket's cells in their final order as a shard; yields nothing."""
        yield from ()
        low, high = bucket_range(bucket, self.n_buckets)
        slices = [read_slice(run, low, high, self.values) for run in self.runs]
        slices = [piece for piece in slices if len(piece.cells)]
        row = self._write_shard(f"{self.generation:06d}-{bucket:06d}", *merge(slices)) if slices else {}
        write_json(self.entry(bucket), row)

    def _write_shard(self, name: str, cells: EncodedRows, described: pa.Table) -> dict[str, Any]:
        obs = dictionary_encoded(pa.Table.from_struct_array(described["obs"]))
        flags = self.duplicates.flags(described["shuffle_key"].to_numpy())
        obs = with_own_columns(obs, pa.table({DUPLICATE.name: flags}))
        with scratch_folder(self.work) as scratch:
            (scratch / OBS).mkdir()
            keys = described["cell_key"].to_numpy()
            row = write_encoded_shard(
                scratch, name, cells, keys, obs, values=self.values, profile=self.profile
            )
            sync_tree(scratch)
            for path in (f"{SHARDS}/{name}", obs_file(name)):
                put(scratch / path, self.folder / path)
        return row


def count_buckets(cells: int, entries: int, cells_per_shard: int) -> int:
    """Shards for so many cells, so that none holds much more than its share."""
    return max(1, round(cells / cells_per_shard), -(-entries // ENTRIES_PER_SHARD))


def bucket_range(bucket: int, n_buckets: int) -> tuple[int, int]:
    """The shuffle keys [low, high) of a bucket: those that ``cell_keys.buckets`` puts there."""
    return -(-(bucket << 32) // n_buckets) << 32, -(-(bucket + 1 << 32) // n_buckets) << 32
