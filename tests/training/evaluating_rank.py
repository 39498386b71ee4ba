"""One rank of an evaluation, as a process: ``python evaluating_rank.py STORE CONFIG MEETING_FILE RANK RANKS``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store import open_store
from cellfoundry_kernels import MaskedCells
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import LoadedModel
from cellfoundry_model.embedder import Embedder
from cellfoundry_training.config import PretrainConfig
from cellfoundry_training.evaluation import evaluate, sum_over_ranks, turns
from cellfoundry_training.gene_means import gene_sums
from cellfoundry_training.objective import EVALUATION_STEP, mask_batch
from cellfoundry_training.probe import labelled_cells, linear_probe
from cellfoundry_training.splits import heldout_batches, heldout_cells, mean_cells

CPU = torch.device("cpu")


def found(store_path: Path, config: PretrainConfig, rank: int, ranks: int) -> dict[str, Any]:
    """What a rank makes of a model with random weights."""
    store = open_store(store_path)
    genes = tuple(store.vocabulary.genes)
    torch.manual_seed(0)
    model = CellModel(config.architecture(len(genes))).eval()

    def mask(batch: CellBatch) -> MaskedCells:
        return mask_batch(batch, config, n_genes=len(genes), step=EVALUATION_STEP, device=CPU)

    sums = gene_sums(mean_cells(store, config, rank, ranks), config, len(genes))
    sums = sum_over_ranks(sums, CPU) if ranks > 1 else sums
    heldout = evaluate(
        model, turns(heldout_batches(heldout_cells(store, config), config), rank, ranks), mask, sums, CPU
    )
    encode = Embedder(LoadedModel(model, model.config, genes, {})).encode
    labelled = heldout_cells(store, config)
    cells = labelled_cells(encode, labelled, "kind", 40, rank=rank, ranks=ranks, device=CPU)
    probe = linear_probe(cells)
    assert probe is not None
    return heldout.record() | {
        "probe": [probe.accuracy, probe.macro_f1, probe.cells],
        "rows": cells.row_C.tolist(),
        "embeddings": cells.embedding_CD.astype(float).sum(1).tolist(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    store_path, values, meeting, rank, ranks = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(ranks))
    print(json.dumps(found(Path(store_path), PretrainConfig(**json.loads(values)), int(rank), int(ranks))))
