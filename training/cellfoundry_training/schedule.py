"""Learning rate as a function of the step and of how much of the budget is used; no state, so a resume needs none."""

from __future__ import annotations

import math

from cellfoundry_training.config import PretrainConfig


def budget_share(config: PretrainConfig, steps: int, seconds: float) -> float:
    """Share of the run's budget used after ``steps`` steps and ``seconds`` of them; the run ends at 1."""
    shares = [0.0]
    if config.max_steps is not None:
        shares.append(steps / config.max_steps)
    if config.max_seconds is not None:
        shares.append(seconds / config.max_seconds)
    return max(shares)


def learning_rate(config: PretrainConfig, step: int, share: float) -> float:
    """Learning rate of ``step`` (from 1) when ``share`` of the budget was used before it.

    Linear warm-up over ``warmup_steps``; then constant, or half a cosine from the peak down to
    ``min_learning_rate_share`` of it at the end of the budget (Loshchilov and Hutter 2017, without restarts).
    """
    warmup = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return config.learning_rate * warmup
    fall = 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))
    floor = config.min_learning_rate_share
    return config.learning_rate * warmup * (floor + (1.0 - floor) * fall)
