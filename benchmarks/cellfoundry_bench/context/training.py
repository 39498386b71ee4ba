"""A short pretraining run in this process, without Ray and DeepSpeed: the steps and evaluation of a real one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from cellfoundry_bench.training.plain_engine import PlainEngine
from cellfoundry_data.store import Store
from cellfoundry_model.architecture import CellModel
from cellfoundry_training.batches import PrefetchedBatches
from cellfoundry_training.config import PretrainConfig
from cellfoundry_training.evaluation import Heldout, evaluate, turns
from cellfoundry_training.gene_means import GeneSums
from cellfoundry_training.objective import EVALUATION_STEP, Masking, mask_batch
from cellfoundry_training.schedule import budget_share, learning_rate
from cellfoundry_training.splits import heldout_batches, heldout_cells, train_cells
from cellfoundry_training.step import GlobalStep
from cellfoundry_training.step_clock import StepClock


@dataclass(frozen=True)
class Learnt:
    """What a run came to.

    Attributes:
        heldout: its last evaluation, by the full decoder.
        cells: trained on.
    """

    heldout: Heldout
    cells: int


def train(store: Store, config: PretrainConfig, means: GeneSums, device: torch.device) -> Learnt:
    """Take ``max_steps`` steps of one micro-batch and evaluate. The same seed gives the same weights, cells and masks
    whatever the decoder's context.
    """
    n_genes = len(store.vocabulary.genes)
    torch.manual_seed(config.seed)
    model = CellModel(config.architecture(n_genes)).to(device)
    engine, clock = PlainEngine(model, clip=config.clip), StepClock(device)
    step = GlobalStep(engine, model.config, Masking.of(config, n_genes), clock)
    cells = 0
    with PrefetchedBatches(train_cells(store, config), device) as batches:
        for number, micro in enumerate(itertools.islice(batches, config.max_steps), start=1):
            clock.start("data")
            rate = learning_rate(config, number, budget_share(config, number - 1, 0.0))
            cells += step.run([micro], number, rate).cells
    heldout = evaluate(
        model.eval(),
        turns(heldout_batches(heldout_cells(store, config), config), rank=0, ranks=1),
        lambda batch: mask_batch(batch, config, n_genes=n_genes, step=EVALUATION_STEP, device=device),
        means,
        device,
    )
    return Learnt(heldout, cells)
