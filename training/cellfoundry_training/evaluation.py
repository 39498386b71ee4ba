"""How good a model is on held-out cells, beside predicting one constant a gene on exactly the same positions.

The masks are those of EVALUATION_STEP and the batches do not depend on the number of ranks, so every evaluation of
a run asks for the same positions, and any number of ranks gives the same numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cellfoundry_data.batch import CellBatch
from cellfoundry_kernels import MaskedCells
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.gene_means import GeneSums
from cellfoundry_training.heldout_sums import DepthBin, GenePearson, HeldoutSums


@dataclass(frozen=True)
class Heldout:
    """Masked mean squared errors on held-out cells, over all ranks.

    Attributes:
        loss: the model.
        gene_mean_loss: each gene's mean under the masking distribution, the best constant there is.
        plain_gene_mean_loss: each gene's mean over training cells, an easier opponent.
        cells: cells evaluated.
        by_depth: the same by depth of the raw cell and whether the input was thinned.
        pearson: gene-wise correlation of prediction and target.
    """

    loss: float
    gene_mean_loss: float
    plain_gene_mean_loss: float
    cells: int
    by_depth: tuple[DepthBin, ...]
    pearson: GenePearson

    def record(self) -> dict[str, Any]:
        """Fields of a line of metrics.jsonl; None stands for what is not a number, which JSON does not have."""
        return {
            "heldout_loss": finite(self.loss),
            "gene_mean_loss": self.gene_mean_loss,
            "plain_gene_mean_loss": self.plain_gene_mean_loss,
            "heldout_cells": self.cells,
            "pearson_mean": self.pearson.mean,
            "pearson_median": self.pearson.median,
            "pearson_genes": self.pearson.genes,
            "by_depth": [asdict(entry) | {"loss": finite(entry.loss)} for entry in self.by_depth],
        }


def finite(number: float | None) -> float | None:
    """The number, or None where it is infinite or not a number."""
    return number if number is not None and math.isfinite(number) else None


@dataclass(frozen=True)
class Turn:
    """A batch that a rank puts through the model; one that another rank counts is only there to keep step."""

    batch: CellBatch
    counts: bool


def turns(batches: Iterable[CellBatch], rank: int, ranks: int) -> Iterator[Turn]:
    """A rank's turns over ``batches``, which every rank must be given alike.

    Batch ``g`` is rank ``g % ranks``'s. All ranks get equally many turns, since with partitioned weights every
    forward pass is a meeting of all ranks: where the batches run out, a rank repeats the round's first one uncounted.
    """
    for group in _groups(batches, ranks):
        counts = rank < len(group)
        yield Turn(group[rank if counts else 0], counts)


@torch.no_grad()
def evaluate(
    predict: Callable[[MaskedCells], Tensor],
    rank_turns: Iterable[Turn],
    mask: Callable[[CellBatch], MaskedCells],
    gene_sums: GeneSums,
    device: torch.device,
) -> Heldout:
    """Add up what ``predict`` makes of this rank's turns, then of all ranks where there are several. Collective.

    Raises:
        TrainingError: no rank had a held-out cell with a chosen position.
    """
    mean_G = torch.from_numpy(gene_sums.objective_mean_G).to(device)
    plain_G = torch.from_numpy(gene_sums.plain_mean_G).to(device)
    sums = HeldoutSums(len(mean_G), device)
    for turn in rank_turns:
        masked = mask(turn.batch)
        prediction_X = predict(masked)
        if turn.counts:
            gene_X = masked.mask_position_X
            sums.add(masked, turn.batch.totals(), prediction_X, mean_G[gene_X], plain_G[gene_X])
    if dist.is_initialized():
        sums.add_ranks()
    losses = sums.losses()
    if losses is None:
        raise TrainingError(
            "no held-out cell to evaluate on: raise validation_share, or lower batch_cells x workers to fit the store"
        )
    return Heldout(*losses, sums.cells, sums.by_depth(), sums.pearson())


def sum_over_ranks(sums: GeneSums, device: torch.device) -> GeneSums:
    """Add the ranks' gene sums. Collective."""
    packed = np.concatenate([[sums.cells], sums.target_G, sums.weight_G, sums.weighted_target_G])
    total = torch.from_numpy(packed).to(device)
    dist.all_reduce(total)
    cells, vectors = total[0].item(), total[1:].cpu().numpy().reshape(3, -1)
    return GeneSums(cells, *vectors)


def _groups(batches: Iterable[CellBatch], size: int) -> Iterator[list[CellBatch]]:
    rest = iter(batches)
    while group := list(itertools.islice(rest, size)):
        yield group
