"""An evaluation by one rank alone and by two gloo processes: ``evaluating.py STORE CONFIG FOLDER``.

Processes are forked after the imports, which cost more than the evaluation. Each rank leaves a JSON file.
"""

from __future__ import annotations

import json
import multiprocessing
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


def _run(store: Path, config: PretrainConfig, folder: Path, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)  # the order of float32 sums depends on their number
    meeting = f"file://{folder / f'meeting_{ranks}'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    (folder / f"{rank}_of_{ranks}.json").write_text(json.dumps(found(store, config, rank, ranks)))
    dist.barrier()
    dist.destroy_process_group()


def main(store: Path, config: PretrainConfig, folder: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=_run, args=(store, config, folder, rank, ranks))
        for rank, ranks in ((0, 1), (0, 2), (1, 2))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), PretrainConfig(**json.loads(sys.argv[2])), Path(sys.argv[3]))
