"""What a fine-tuning run is made of: one validated record with defaults for all but the label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from cellfoundry_training.errors import TrainingError
from cellfoundry_training.settings import first_fault, nearest, parse_override

DEFAULT_LAST = 2


class FinetuneConfig(BaseModel):
    """A fine-tuning run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    """Obs column to predict."""
    task: Literal["classification", "regression"] | None = None
    """What to predict; empty: numbers by regression, text, categories and booleans by classification."""
    tune: Literal["head", "last", "full", "lora"] = "head"
    """What learns beside the head: nothing, the last encoder layers, embeddings and all layers, or low-rank adapters
    of all layers, which end merged into the weights."""
    last: PositiveInt | None = None
    """With tune last: how many encoder layers, from the end; empty means 2."""
    lora_rank: PositiveInt = 8
    """With tune lora: rank of an adapter."""
    lora_alpha: PositiveFloat = 16.0
    """With tune lora: an adapter's output counts lora_alpha / lora_rank times."""

    pool: Literal["all", "max"] = "all"
    """How a cell's tokens become the vector the head takes, as in `embed`."""
    target: str = "t4"
    """Depth T asked for, as in `embed`."""
    hidden: NonNegativeInt = 0
    """Width of a layer with ReLU inside the head; 0 makes the head linear."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class weighs in the loss as if all classes had equally many cells."""

    learning_rate: PositiveFloat = 1e-3
    """AdamW's learning rate of the head."""
    encoder_learning_rate: PositiveFloat = 1e-4
    """AdamW's learning rate of what learns beside the head."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's decoupled weight decay."""
    clip: PositiveFloat = 1.0
    """Largest norm of a step's gradient."""
    batch_cells: PositiveInt = 64
    """Cells of a step."""
    max_tokens: PositiveInt = 16_384
    """Encoder tokens that go through the model at once; a step's gradient is summed over such parts."""
    max_epochs: PositiveInt = 100
    """Passes over the training cells, at most."""
    patience: PositiveInt = 5
    """Stop after that many epochs without a lower loss on the validation cells; the best epoch's weights are kept."""

    validation_share: float = Field(0.1, gt=0.0, lt=0.5)
    """Share of each class's cells that decides when to stop."""
    test_share: float = Field(0.2, gt=0.0, lt=0.5)
    """Share of each class's cells that is judged at the end and used for nothing else."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Key of split, head and order of cells: same seed, same result on the same device."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of matrix products in the encoder."""

    @model_validator(mode="after")
    def _check_across_fields(self) -> FinetuneConfig:
        if self.last is not None and self.tune != "last":
            raise ValueError(f"last is for tune last, and tune is {self.tune}; leave one of them out")
        adapters = sorted({"lora_rank", "lora_alpha"} & self.model_fields_set)
        if adapters and self.tune != "lora":
            raise ValueError(
                f"{adapters[0]} is for tune lora, and tune is {self.tune}; leave one of them out"
            )
        return self

    @property
    def last_layers(self) -> int:
        """Encoder layers that learn with tune last."""
        return self.last or DEFAULT_LAST


def build_config(values: Mapping[str, Any], overrides: Iterable[str] = ()) -> FinetuneConfig:
    """Validate ``values`` with ``key=value`` ``overrides`` over them; TrainingError names the field or key."""
    merged = dict(values) | dict(parse_override(override) for override in overrides)
    for key in merged:
        if key not in FinetuneConfig.model_fields:
            raise TrainingError(
                f"fine-tuning: unknown key {key!r}{nearest(key, FinetuneConfig.model_fields)}"
            )
    try:
        return FinetuneConfig.model_validate(merged)
    except ValidationError as error:
        raise TrainingError(f"fine-tuning: {first_fault(error)}") from None
