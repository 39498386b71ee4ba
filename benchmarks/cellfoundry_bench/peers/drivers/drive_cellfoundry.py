"""CellFoundry's ingest and ``ShardDataset``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from protocol import Meter, System, peak_bytes, serve

from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.store import open_store


class CellFoundry(System):
    """Batches are ``CellBatch``: indptr, gene ids, counts, row ids."""

    def ready(self) -> None:
        """Import what ``prepare`` needs, which a process that only reads does without."""
        import ray.data  # noqa: F401

        import cellfoundry_data.ingest  # noqa: F401

    def prepare(self, sources: list[str], out: str, **settings: Any) -> None:
        """Every cell is kept, so that all sides hold the same."""
        from cellfoundry_data.ingest import ingest

        ingest(sources, out, min_genes=0, **settings)

    def keep_ray(self) -> None:
        """Let the ingests that follow share one Ray, which ends with this process."""
        from cellfoundry_data.ray_cluster import ray_cluster

        self._ray = ray_cluster()
        self._ray.__enter__()

    def open(self, path: str, batch_cells: int | None, **settings: Any) -> None:
        """Settings are those of ``ShardDataset``; the one before goes first, as a run of training has one."""
        self._dataset: ShardDataset | None = None
        self._dataset = ShardDataset(path, batch_cells=batch_cells, **settings)

    def epoch(self) -> Iterable[Any]:
        """The dataset's next epoch."""
        assert self._dataset is not None
        return self._dataset

    def cells(self, batch: Any) -> int:
        """Cells of the batch."""
        return len(batch)

    def content(self, batch: Any) -> tuple[int, int, float]:
        """Of the batch."""
        return len(batch), batch.nnz, float(batch.counts.sum(dtype=np.float64))

    def ask(self, what: str, **settings: Any) -> dict[str, Any]:
        """Resuming, and token-budget batches over ranks."""
        if what == "keep_ray":
            self.keep_ray()
            return {}
        if what == "resume":
            return resume(**settings)
        if what == "token_batches":
            return token_batches(**settings)
        return super().ask(what, **settings)


class CountingStore:
    """A store that says how many chunks were asked of it."""

    def __init__(self, path: str) -> None:
        self.store = open_store(path)
        self.chunks = 0
        decode = self.store.decode_chunks

        def counted(chunks: Any, *arguments: Any, **more: Any) -> Any:
            self.chunks += len(chunks)
            return decode(chunks, *arguments, **more)

        self.store.decode_chunks = counted  # type: ignore[method-assign]


def resume(path: str, batch_cells: int, shares: list[float], batches: list[int]) -> dict[str, Any]:
    """For each point of an epoch: seconds and chunks from a saved state to the first batch after it."""
    walked = ShardDataset(path, batch_cells=batch_cells)
    stops = sorted({*batches, *(int(len(walked) * share) for share in shares)})
    states, points = {}, []
    for number, _ in enumerate(walked, 1):
        if number in stops:
            states[number] = walked.state_dict()
    for number in [stops[0], *stops]:  # the first one warms up and is not counted
        counting = CountingStore(path)
        started = time.perf_counter()
        dataset = ShardDataset(counting.store, batch_cells=batch_cells)
        dataset.load_state_dict(states[number])
        batches_left = iter(dataset)
        next(batches_left)
        seconds = time.perf_counter() - started
        points.append({"batch": number, "seconds": seconds, "chunks": counting.chunks})
        del batches_left
    return {"points": points[1:], "batches": len(walked)}


def token_batches(path: str, tokens: int, ranks: int, **settings: Any) -> dict[str, Any]:
    """Share of the budget that batches fill, and the fullest rank over the mean of a step, over an epoch."""
    meter = Meter()
    filled = [
        [
            batch.nnz
            for batch in ShardDataset(path, batch_tokens=tokens, rank=rank, world_size=ranks, **settings)
        ]
        for rank in range(ranks)
    ]
    steps = np.array(filled, float)
    cost = meter.lap()
    return {
        "fill": float(steps.mean() / tokens),
        "least_fill": float(steps.min() / tokens),
        "balance": float((steps.max(axis=0) / steps.mean(axis=0)).mean()),
        "steps": steps.shape[1],
        "cpu_s": cost["cpu_s"],
        "peak_bytes": peak_bytes(),
    }


if __name__ == "__main__":
    serve(CellFoundry())
