"""The shard store: Zarr v3 with whole cells a chunk, byte-coded, checksummed (docs/store-format.md)."""

from cellfoundry_data.store.export import export
from cellfoundry_data.store.reader import Store, open_store
from cellfoundry_data.store.verify import VerifyReport, verify

__all__ = ["Store", "VerifyReport", "export", "open_store", "verify"]
