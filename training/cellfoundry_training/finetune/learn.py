"""A head, and as much of the encoder as asked for, learn on one split of the cells.

Legend: E labelled cells with counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cellfoundry_model.checkpoint import LoadedModel
from cellfoundry_model.head import Head, HeadConfig
from cellfoundry_training.finetune.config import FinetuneConfig
from cellfoundry_training.finetune.fitting import Epoch, Fitting, Objective
from cellfoundry_training.finetune.inputs import Inputs, Progress
from cellfoundry_training.finetune.split import Split
from cellfoundry_training.finetune.tuned import merged, tuned

SCALE_CELLS = 512
"""Training cells whose vectors set the head's scales where the encoder learns too."""


@dataclass(frozen=True)
class Learned:
    """What learned.

    Attributes:
        encoder: of the inputs; its weights are those of the model that was given, adapters merged into them.
        head: on its vectors.
        epochs: in order; none without validation cells.
        parameters: numbers that learned.
    """

    encoder: nn.Module
    head: Head
    epochs: list[Epoch]
    parameters: int


def learn(
    loaded: LoadedModel,
    head_config: HeadConfig,
    inputs: Inputs,
    value_E: npt.NDArray[Any],
    split: Split,
    config: FinetuneConfig,
    device: torch.device,
    progress: Progress | None = None,
    watch: Callable[[Epoch], None] | None = None,
) -> Learned:
    """Train on ``split.train`` until the loss on ``split.validation`` stops falling, or without validation cells for
    all of ``config.max_epochs``; the model given changes.

    Args:
        loaded: the model to start from, on ``device``.
        head_config: what the head predicts.
        inputs: of all labelled cells: vectors with tune head, else tokens.
        value_E: their class numbers, or numbers.
        split: positions in these.
        config: what learns, and how.
        device: where.
        progress: called with (label, done, total).
        watch: called after every epoch.

    Raises:
        TrainingError: a diverging loss.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)  # of the head's and the adapters' first weights
        # Where the encoder stands still its vectors are the inputs.
        encoder = nn.Identity() if config.tune == "head" else tuned(loaded.model, config)
        head = Head(head_config).to(device)
    _set_scales(head, encoder, inputs, split, value_E, config)
    objective = Objective(
        head, torch.from_numpy(value_E).to(device), split.train, balanced=config.class_weights == "balanced"
    )
    fitting = Fitting(encoder, head, inputs, objective, config)
    epochs: list[Epoch] = []
    if len(split.validation):
        epochs = fitting.run(split, progress, watch)
    else:
        fitting.run_all(split.train, progress)
    return Learned(merged(encoder, config), head, epochs, fitting.parameters)


@torch.no_grad()
def _set_scales(
    head: Head,
    encoder: nn.Module,
    inputs: Inputs,
    split: Split,
    value_E: npt.NDArray[Any],
    config: FinetuneConfig,
) -> None:
    """Scales of the head: of vectors from training cells as the encoder sees them now, of labels from all of these."""
    chosen = np.random.default_rng([config.seed, 0]).permutation(split.train)
    if config.tune != "head":
        chosen = chosen[:SCALE_CELLS]
    vectors = [encoder(given) for _, given in inputs.parts(np.sort(chosen))]
    label = torch.from_numpy(value_E[split.train]) if head.config.task == "regression" else None
    head.set_scales(torch.cat(vectors), label, per_channel=config.tune == "head")
