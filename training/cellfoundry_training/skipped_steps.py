"""Steps that were left out because loss or gradient was not finite: which cells they had, and when it is too much."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch.distributed as dist

from cellfoundry_training.batches import CellTensors
from cellfoundry_training.config import PretrainConfig
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.step import StepOutcome

NAMED_CELLS = 20


def skipped_record(outcome: StepOutcome, micro_batches: list[CellTensors], step: int) -> dict[str, Any]:
    """The line of metrics.jsonl: why, and the store rows of the micro-batches in question on all ranks. Collective.

    Those are the ones whose own loss is not finite; where every loss is, those of the whole step.
    """
    suspects = [micro_batches[number] for number in outcome.suspects]
    broken = not math.isfinite(outcome.loss)
    rows = [row for cells in suspects for row in cells.cell_ids.tolist()]
    of_ranks: list[Any] = [None] * dist.get_world_size()
    # Where some loss is not finite, a rank whose own losses all are has nothing to name.
    dist.all_gather_object(of_ranks, (outcome.has_broken_loss, rows))
    named = [rows for is_broken, rows in of_ranks if is_broken or not broken]
    why = f"loss {outcome.loss}" if broken else f"gradient norm {outcome.gradient_norm}"
    return {"step": step, "skipped": why, "cell_rows": sorted(row for rows in named for row in rows)}


def rows_of_all_ranks(micro_batches: list[CellTensors]) -> list[int]:
    """Store rows of a step's cells over all ranks, ascending. Collective."""
    own = [row for cells in micro_batches for row in cells.cell_ids.tolist()]
    of_ranks: list[list[int]] = [[]] * dist.get_world_size()
    dist.all_gather_object(of_ranks, own)
    return sorted(itertools.chain.from_iterable(of_ranks))


def check_in_a_row(skipped: int, config: PretrainConfig, record: dict[str, Any]) -> None:
    """TrainingError if as many steps in a row were skipped as ``max_skipped_steps`` allows."""
    if skipped < config.max_skipped_steps:
        return
    rows = record["cell_rows"]
    named = ", ".join(map(str, rows[:NAMED_CELLS]))
    more = f" and {len(rows) - NAMED_CELLS} more" if len(rows) > NAMED_CELLS else ""
    raise TrainingError(
        f"{skipped} steps in a row were not finite, the last one step {record['step']} ({record['skipped']}) with the "
        f"cells in store rows {named}{more}: lower learning_rate (now {config.learning_rate:g}) or raise "
        "warmup_steps, or look at these cells; the weights are those before these steps"
    )
