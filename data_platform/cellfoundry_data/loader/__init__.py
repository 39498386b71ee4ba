"""Random-order training batches from a store, the same order on any number of ranks, resumable at any batch.

An epoch's order (``order``, ``sampling``) is a function of (seed, epoch) that gives windows of cells; a window is
cut into batches (``batching``), of which each rank decodes its own (``windows``) straight into their places while
the window before is handed out (``steps``). ``dataset`` puts these together.
"""

from cellfoundry_data.loader.dataset import ShardDataset

__all__ = ["ShardDataset"]
