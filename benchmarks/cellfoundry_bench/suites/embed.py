"""Batch embedding of real cells: packed micro-batches against the one-cell-at-a-time float32 loop.

Random weights: the time of a forward pass does not depend on them. Both sides start from the same raw counts, and
the run that is timed also shows that they agree.
"""

from __future__ import annotations

import numpy as np
import torch

from cellfoundry_bench.measure import compare
from cellfoundry_bench.one_cell_loop import OneCellLoop
from cellfoundry_bench.real_cells import real_cells
from cellfoundry_bench.results import Row, SuiteResult
from cellfoundry_data.batch import CellBatch
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import LoadedModel
from cellfoundry_model.embedder import Embedder
from cellfoundry_model.presets import PRESETS

PEER = "one cell at a time, torch layers"
AGREEMENT = 1e-4  # largest absolute difference allowed in float32


def run() -> SuiteResult:
    """Measure `tiny` and a middle size on the CPU."""
    return SuiteResult([*embed_rows("tiny", real_cells(48)), *embed_rows("10m", real_cells(3))])


def embed_rows(preset: str, batch: CellBatch, rounds: int = 3) -> list[Row]:
    """Cells per second of both sides on ``batch``, and the largest difference between their results."""
    torch.manual_seed(0)
    config = PRESETS[preset]
    model = CellModel(config).eval()
    genes = tuple(f"gene{index}" for index in range(config.n_genes))
    embedder, loop = Embedder(LoadedModel(model, config, genes, {})), OneCellLoop(model)
    difference = float(np.abs(embedder.encode(batch) - loop.encode(batch)).max())
    timed = compare(lambda: embedder.encode(batch), lambda: loop.encode(batch), rounds=rounds)
    threads = torch.get_num_threads()
    note = f"{len(batch)} real cells, {batch.nnz // len(batch)} genes each, {threads} threads, float32"
    return [
        timed.rate_row(f"embed, {preset}", len(batch), "cells/s", PEER, note=note),
        Row(
            f"largest difference from the loop, {preset}",
            difference,
            "absolute",
            bar=AGREEMENT,
            bar_is="at most",
        ),
    ]
