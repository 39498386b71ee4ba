"""Work of an average micro-batch: tokens that the encoder sees, positions of the decoder, useful FLOPs.

Legend: G genes of the vocabulary, n expressed genes of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellfoundry_model.flops import decoder_flops, encoder_flops
from cellfoundry_training.config import PretrainConfig

SPECIAL_TOKENS = 2
# Backward takes twice the products of forward (``cellfoundry_model.flops``).
STEP_PER_FORWARD = 3
# Quantiles of a normal that stand for the cells of a log-normal: their mean and mean square are within 1 % of it.
QUANTILES = 64


@dataclass(frozen=True)
class Workload:
    """A cell on average, over the lengths it was made from.

    Attributes:
        expressed: genes.
        tokens: encoder tokens, T and S included.
        rows: decoder rows; fewer than positions where the decoder sees a sample.
        entered: rows that are projected into the decoder for this cell: tokens and positions that show the mask token,
            or all rows of a sample.
        asked: chosen positions, whose expression is predicted.
        flops: useful FLOPs of forward and backward.
    """

    expressed: float
    tokens: float
    rows: float
    entered: float
    asked: float
    flops: float


def lognormal_lengths(mean: float, spread: float, most: int) -> list[int]:
    """Expressed genes of cells whose log is normal: ``mean`` genes, coefficient of variation ``spread``."""
    from scipy.stats import norm

    variance = np.log1p(spread**2)
    z = norm.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES)
    lengths = np.exp(np.log(mean) - variance / 2 + np.sqrt(variance) * z)
    return np.clip(np.round(lengths), 1, most).astype(int).tolist()


def average_workload(config: PretrainConfig, expressed: Sequence[int], n_genes: int) -> Workload:
    """The objective's work on cells with these numbers of expressed genes.

    Of the expressed genes all but ``value_mask_prob x replace_prob`` stay encoder tokens, of the zeros
    ``zero_mask_prob x random_prob`` become some. Thinning, which takes tokens of half of the cells with 1,000 counts
    or more, is not counted: tokens and FLOPs are upper bounds.
    """
    model = config.architecture(n_genes)
    seen = np.asarray(expressed, dtype=np.float64)
    zeros = n_genes - seen
    kept = seen * (1 - config.value_mask_prob * config.replace_prob)
    lengths = np.round(kept + zeros * config.zero_mask_prob * config.random_prob).astype(int) + SPECIAL_TOKENS
    asked = seen * config.value_mask_prob + zeros * config.zero_mask_prob
    hidden = asked * config.replace_prob
    entered, rows = lengths + hidden, np.full(len(lengths), float(model.n_positions))
    is_sampled = config.decoder_context == "sampled"
    if is_sampled:
        # Chosen zeros that keep their value are no tokens, but are asked for.
        kept_zeros = zeros * config.zero_mask_prob * (1 - config.replace_prob - config.random_prob)
        seen_anyway = entered + kept_zeros
        entered = rows = seen_anyway + config.context_rate * (model.n_positions - seen_anyway)
    cells = len(lengths)
    forward = encoder_flops(model, lengths.tolist()) + decoder_flops(
        model,
        cells,
        round(float(entered.sum())),
        round(float(asked.sum())),
        round(float(rows.sum())) if is_sampled else None,
    )
    return Workload(
        expressed=float(seen.mean()),
        tokens=float(lengths.mean()),
        rows=float(rows.mean()),
        entered=float(entered.mean()),
        asked=float(asked.mean()),
        flops=STEP_PER_FORWARD * forward / cells,
    )
