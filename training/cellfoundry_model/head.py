"""A head on cell vectors: classes of an obs column, or a number.

Legend: C cells, W width of a cell's vector, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellfoundry_model.errors import ModelError

Task = Literal["classification", "regression"]

SMALLEST_SPREAD = 1e-6
"""A channel with a smaller standard deviation is only centred."""


@dataclass(frozen=True)
class HeadConfig:
    """What a head predicts, and from what.

    Attributes:
        task: "classification" or "regression".
        label: the obs column it was trained on.
        classes: the labels in the order of the outputs; none for regression.
        pool: how the cell's tokens became the vector it takes, "all" or "max".
        target: depth T that was asked for, "t4" say; see ``tokens.tokenize``.
        width: length of that vector.
        hidden: width of the layer between, with ReLU; 0 is a linear head.
    """

    task: Task
    label: str
    classes: tuple[str, ...]
    pool: Literal["all", "max"]
    target: str
    width: int
    hidden: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HeadConfig:
        """Build from JSON's types; ModelError where a field is unknown, missing or cannot be."""
        names = [field.name for field in fields(cls)]
        if sorted(values) != sorted(names):
            raise ModelError(f"head config: its fields are {', '.join(values)}, not {', '.join(names)}.")
        classes = values["classes"]
        valid = {
            "task": values["task"] in ("classification", "regression"),
            "label": isinstance(values["label"], str),
            "classes": isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes),
            "pool": values["pool"] in ("all", "max"),
            "target": isinstance(values["target"], str),
            "width": type(values["width"]) is int and values["width"] > 0,
            "hidden": type(values["hidden"]) is int and values["hidden"] >= 0,
        }
        if valid["classes"]:
            fits = len(classes) >= 2 if values["task"] == "classification" else not classes
            valid["classes"] = fits and len(set(classes)) == len(classes)
        wrong = [name for name, holds in valid.items() if not holds]
        if wrong:
            raise ModelError(f"head config: {wrong[0]} cannot be {values[wrong[0]]!r}.")
        return cls(**{**values, "classes": tuple(classes)})

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON's types."""
        return asdict(self) | {"classes": list(self.classes)}


class Head(nn.Module):
    """Standardise the vector, one or two linear maps; for a number, back to the label's own scale.

    The scales are buffers and fixed when training starts (``set_scales``), so that one learning rate fits
    vectors and labels of any size.
    """

    vector_mean_W: Tensor
    vector_scale_W: Tensor
    label_mean: Tensor
    label_scale: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        inner, outputs = config.hidden or config.width, max(1, len(config.classes))
        self.hidden = nn.Linear(config.width, inner) if config.hidden else None
        self.out = nn.Linear(inner, outputs)
        self.register_buffer("vector_mean_W", torch.zeros(config.width))
        self.register_buffer("vector_scale_W", torch.ones(config.width))
        # In float32 a label like 1.7e9 (seconds since 1970) would be known to 128 only.
        self.register_buffer("label_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("label_scale", torch.ones((), dtype=torch.float64))

    def set_scales(self, vector_CW: Tensor, label_C: Tensor | None, *, per_channel: bool) -> None:
        """Take mean and standard deviation from training cells: of vectors (C, W), and of labels (C,) for regression,
        float64 and not all equal.

        ``per_channel`` is for an encoder that stands still. In one that learns, a channel that hardly varies at first
        would be blown up whatever it turns into (in one run a mean loss of 17 in place of 4 in the first epoch), so all
        channels then get one scale, the root mean square of theirs.
        """
        spread_W = vector_CW.std(0, correction=0)
        if not per_channel:
            spread_W = spread_W.square().mean().sqrt().expand_as(spread_W)
        self.vector_mean_W.copy_(vector_CW.mean(0))
        self.vector_scale_W.copy_(torch.where(spread_W > SMALLEST_SPREAD, spread_W, 1.0))
        if label_C is not None:
            self.label_mean.copy_(label_C.mean())
            self.label_scale.copy_(label_C.std(correction=0))

    def forward(self, vector_CW: Tensor) -> Tensor:
        """Float32 logits (C, K) for classification, float64 values (C,) in the label's unit for regression."""
        x = (vector_CW - self.vector_mean_W) / self.vector_scale_W
        if self.hidden is not None:
            x = F.relu(self.hidden(x))
        x = self.out(x)
        if self.config.task == "classification":
            return x
        return x.squeeze(1).double() * self.label_scale + self.label_mean
