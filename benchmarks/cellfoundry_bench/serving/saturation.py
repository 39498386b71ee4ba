"""A model behind the endpoint at saturation, against the same engine on the same cells without it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from cellfoundry_bench.measure import Comparison, seconds
from cellfoundry_bench.results import Row
from cellfoundry_bench.serving.no_engine import NO_CACHE, infer_request
from cellfoundry_bench.serving.protocol import load
from cellfoundry_data.batch import CellBatch
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import save_model
from cellfoundry_model.presets import PRESETS
from cellfoundry_serving.endpoint.server import running
from cellfoundry_serving.engines import open_engine

CLIENTS = 32
PATIENT = NO_CACHE.model_copy(update={"wait_s": 600.0})  # what many clients wait for is throughput


def saturation_row(preset: str, cells: CellBatch, rounds: int) -> Row:
    """Clients with one real cell a request, each asking again once it is answered, against the engine on one batch.

    All requests carry the same cell, the one of median length, and the peer's batch is as many copies of it. Both
    cut batches by tokens.
    """
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model_dir = Path(folder) / "model"
        save_model(CellModel(PRESETS[preset]), Vocabulary.named("scfoundation").genes, model_dir, {})
        engine = open_engine(model_dir, "torch")
    typical = int(np.argsort(np.diff(cells.indptr))[len(cells) // 2])
    request = infer_request(cells.select(np.array([typical])))
    copies = cells.select(np.full(len(cells), typical))
    clients = min(CLIENTS, len(cells))
    timed = Comparison([], [])
    with running(engine, limits=PATIENT) as url:
        for _ in range(rounds):
            timed.ours.append(load(request, url, clients, len(cells) // clients).wall_s)
            timed.peer.append(seconds(lambda: engine.encode(copies)))
    return timed.rate_row(
        f"{preset} at saturation, {clients} clients, one cell a request",
        len(cells),
        "cells/s",
        "the same engine, offline",
        bar=0.9,
        note=f"{len(cells)} requests of {np.diff(copies.indptr)[0]:,} genes a round, float32, "
        f"{torch.get_num_threads()} threads shared with the load generator",
    )
