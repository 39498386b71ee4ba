"""What a pretraining run is made of: one validated record, YAML presets beside it, and `key=value` overrides."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
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

from cellfoundry_model.config import ModelConfig
from cellfoundry_model.errors import ModelError
from cellfoundry_model.presets import PRESETS
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.files import replace_text
from cellfoundry_training.settings import first_fault, nearest, parse_override

CONFIG_DIR = Path(__file__).parent / "configs"


class PretrainConfig(BaseModel):
    """A pretraining run. A preset file shows every value; a file of your own may leave out what has a default here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | dict[str, Any]
    """Preset name, or the fields of a ModelConfig; the number of genes always follows the store."""

    workers: PositiveInt = 1
    """Ranks of the run; one CPU core share or one GPU each."""
    min_workers: PositiveInt | None = None
    """Fewest ranks with which the run goes on while nodes are missing, at the same global batch; empty means that it
    waits for all of workers."""
    max_restarts: NonNegativeInt = 3
    """How often the run starts again by itself from its last checkpoint after ranks were lost or hung."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where ranks compute; auto takes GPUs if the cluster has one for every rank."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of weights and activations in the forward and backward pass; the optimizer keeps float32."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: what is partitioned over ranks (1 optimizer, 2 + gradients, 3 + weights)."""

    deepspeed: dict[str, Any] | None = None
    """DeepSpeed settings in place of those of zero_stage's file: a path to a JSON file, whose content the resolved
    configuration keeps; what this configuration decides must not be contradicted there."""
    activation_checkpointing: bool = False
    """Compute each layer a second time in the backward pass instead of keeping what it holds: a third more work, a
    fraction of the memory."""
    compile: bool = False
    """Compile the layers with torch.compile, which takes minutes at the start; needs triton on GPU, g++ on CPU."""

    batch_cells: PositiveInt | None = None
    """Cells a rank puts through the model at once; this or batch_tokens."""
    batch_tokens: PositiveInt | None = None
    """Most tokens a rank puts through the model at once: cells of nearly one length, as many as fit."""
    cell_tokens: NonNegativeInt = 2
    """What a cell counts for in batch_tokens beside its genes: 2 for its T and S, more where the decoder's memory,
    which every cell takes alike, outweighs the encoder's."""
    gradient_accumulation: PositiveInt = 1
    """Such batches per optimizer step and rank."""
    max_steps: PositiveInt | None = None
    """Stop after that many optimizer steps; at least one of max_steps and max_seconds is needed."""
    max_seconds: PositiveFloat | None = None
    """Stop once steps took that many seconds of wall time (evaluation and checkpoints not counted)."""

    learning_rate: PositiveFloat
    """AdamW's peak learning rate."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up; cosine falls over the whole budget, steps or seconds."""
    min_learning_rate_share: float = Field(0.1, ge=0.0, le=1.0)
    """Where cosine ends, as a share of the peak."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay."""
    clip: PositiveFloat = 1.0
    """Largest global norm of the gradients."""
    max_skipped_steps: PositiveInt = 3
    """Steps in a row whose loss or gradient is not finite, which are skipped, before the run stops."""
    collective_timeout_s: PositiveFloat = 1800.0
    """Seconds that ranks wait for one that hangs before the run stops and names it; longer than an evaluation and
    a checkpoint take."""

    value_mask_prob: float = Field(0.3, ge=0.0, le=1.0)
    """Share of non-zero positions that the model must predict."""
    zero_mask_prob: float = Field(0.03, ge=0.0, le=1.0)
    """Share of zero positions that the model must predict."""
    replace_prob: float = Field(0.8, ge=0.0, le=1.0)
    """Share of those that become the mask token."""
    random_prob: float = Field(0.1, ge=0.0, le=1.0)
    """Share of those that become a random value; the rest keep theirs."""
    read_depth_aware: bool = True
    """Downsample half of the cells with at least 1,000 counts, so that the model learns to raise read depth."""

    decoder_context: Literal["full", "sampled"] = "full"
    """What the decoder computes in training: every position, or encoder tokens, chosen positions and a sample of the
    other zeros, which counts for all of them. Evaluation is always full."""
    context_rate: float = Field(0.05, gt=0.0, le=1.0)
    """Share of those zeros that sampled takes."""

    gene_start: Literal["random", "components"] = "random"
    """First vectors of the genes: random, or principal components of training cells, which learns faster."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Key of weights, cell order and masks: same seed, same run."""
    validation_share: float = Field(0.05, gt=0.0, lt=1.0)
    """Share of the store's cells held out for evaluation."""
    eval_every_steps: PositiveInt
    """Steps between evaluations on held-out cells; one more follows the last step."""
    eval_cells: PositiveInt | None = None
    """Held-out cells an evaluation uses at most; empty means all."""
    probe_column: str | None = None
    """Obs column whose labels a linear probe on the embeddings of held-out cells predicts; empty means no probe."""
    probe_cells: PositiveInt = 2000
    """Labelled held-out cells that the probe uses at most."""
    loggers: list[Literal["tensorboard", "mlflow", "wandb"]] = ["tensorboard"]
    """Where numbers go beside metrics.jsonl; mlflow and wandb are extras and read their own environment variables."""
    log_cells: bool = False
    """Note the store rows of every step's cells in metrics.jsonl, to audit what the run has seen."""
    checkpoint_every_steps: PositiveInt | None = None
    """Steps between checkpoints: what an interruption can cost at most; this, checkpoint_every_minutes or both."""
    checkpoint_every_minutes: PositiveFloat | None = None
    """Minutes between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints kept; one that turns out damaged is passed over for the one before."""
    keep_best_checkpoint: bool = False
    """Save as well whenever the held-out loss is the lowest so far, and keep that checkpoint."""

    @model_validator(mode="after")
    def _check_across_fields(self) -> PretrainConfig:
        if self.max_steps is None and self.max_seconds is None:
            raise ValueError("max_steps or max_seconds must be set, or the run would never end")
        if self.checkpoint_every_steps is None and self.checkpoint_every_minutes is None:
            raise ValueError("checkpoint_every_steps or checkpoint_every_minutes must be set")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, more than workers, {self.workers}")
        if (self.batch_cells is None) == (self.batch_tokens is None):
            raise ValueError(
                "batch_cells or batch_tokens must be set, and not both; set the other one to null"
            )
        contradiction = self._contradicted_by_deepspeed()
        if contradiction:
            raise ValueError(f"deepspeed: {contradiction}")
        if self.value_mask_prob == 0 and self.zero_mask_prob == 0:
            raise ValueError("value_mask_prob and zero_mask_prob are both 0, so there is nothing to predict")
        if self.replace_prob + self.random_prob > 1:
            raise ValueError("replace_prob + random_prob must not exceed 1")
        if isinstance(self.model, str) and self.model not in PRESETS:
            raise ValueError(f"model: no preset {self.model!r}; there are {', '.join(PRESETS)}")
        return self

    @property
    def step_batches(self) -> int:
        """Micro-batches of an optimizer step over all ranks: the global batch, whatever the number of ranks."""
        return self.workers * self.gradient_accumulation

    def on_ranks(self, ranks: int) -> PretrainConfig:
        """The same run on ``ranks`` ranks at the same global batch; the last micro-batches of some may be missing."""
        rounds = -(-self.step_batches // ranks)
        return self.model_copy(update={"workers": ranks, "gradient_accumulation": rounds})

    @property
    def deepspeed_decided(self) -> dict[str, Any]:
        """DeepSpeed's keys, dotted, that this configuration decides, and their values."""
        micro = (
            self.batch_cells or 1
        )  # with a token budget the number differs, and DeepSpeed only multiplies it
        return {
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": self.gradient_accumulation,
            "train_batch_size": micro * self.gradient_accumulation * self.workers,
            "gradient_clipping": self.clip,
            "zero_optimization.stage": self.zero_stage,
            "bf16.enabled": self.precision == "bf16",
            "fp16.enabled": False,
            # A step that is not finite is skipped by these two.
            "bf16.check_grad_overflow": True,
            "zero_optimization.compute_grad_norm": True,
        }

    def _contradicted_by_deepspeed(self) -> str | None:
        """What is wrong with ``deepspeed``'s keys, in words; None if nothing is."""
        for key in ("optimizer", "scheduler"):
            if self.deepspeed and key in self.deepspeed:
                return f"{key} is not DeepSpeed's to choose here; leave it out and set learning_rate and its like"
        zero = (self.deepspeed or {}).get("zero_optimization")
        for key in zero if isinstance(zero, dict) else ():
            # Loading and saving read weights and moments on the rank's own device.
            if key.startswith(("offload_", "cpu_offload")):
                return (
                    f"zero_optimization.{key} is not supported; leave it out and raise zero_stage or workers"
                )
        for key, value in self.deepspeed_decided.items():
            given: Any = self.deepspeed or {}
            for part in key.split("."):
                given = given.get(part, "auto") if isinstance(given, dict) else "auto"
            if given not in ("auto", value):
                return f"{key} is {given!r}, but this configuration makes it {value!r}; leave the key out"
        return None

    def architecture(self, n_genes: int) -> ModelConfig:
        """The model's sizes for a store of ``n_genes``; ModelError if they do not fit together."""
        fields = PRESETS[self.model].to_dict() if isinstance(self.model, str) else dict(self.model)
        return ModelConfig.from_dict({**fields, "n_genes": n_genes})

    def hash(self) -> str:
        """Short hex digest of every value, to tell runs apart."""
        text = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def write(self, path: Path) -> None:
        """Write every value as YAML, which `load_config` reads back to an equal record; a former file stays where the
        disk does not take it, with OSError.
        """
        replace_text(path, yaml.safe_dump(self.model_dump(), sort_keys=False))


def load_config(name_or_file: str | Path, overrides: Iterable[str] = ()) -> PretrainConfig:
    """Read a preset (a name such as ``tiny``) or a YAML file and apply ``key=value`` overrides.

    A dot reaches into the model: ``model.encoder_depth=4``. Raises TrainingError, which names the field or key.
    """
    values = _read_yaml(name_or_file)
    for override in overrides:
        _apply(values, override)
    if isinstance(values.get("deepspeed"), str):
        values["deepspeed"] = _read_deepspeed(Path(values["deepspeed"]))
    return build_config(values, source=str(name_or_file))


def build_config(values: Mapping[str, Any], *, source: str) -> PretrainConfig:
    """Validate ``values``; TrainingError with one sentence that names the field and ``source``."""
    for key in values:
        if key not in PretrainConfig.model_fields:
            raise TrainingError(
                f"configuration {source}: unknown key {key!r}{nearest(key, PretrainConfig.model_fields)}"
            )
    try:
        config = PretrainConfig.model_validate(dict(values))
        config.architecture(n_genes=1)
    except ValidationError as error:
        raise TrainingError(f"configuration {source}: {first_fault(error)}") from None
    except ModelError as error:
        raise TrainingError(f"configuration {source}: model: {error}") from None
    return config


def _read_yaml(name_or_file: str | Path) -> dict[str, Any]:
    preset = CONFIG_DIR / f"{name_or_file}.yaml"
    path = preset if preset.parent == CONFIG_DIR and preset.is_file() else Path(name_or_file)
    if not path.is_file():
        presets = ", ".join(sorted(file.stem for file in CONFIG_DIR.glob("*.yaml")))
        raise TrainingError(
            f"no configuration {str(name_or_file)!r}: give one of the presets {presets}, or a YAML file"
        )
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(f"configuration {path} is not valid YAML: {reason}") from None
    if not isinstance(values, dict):
        raise TrainingError(f"configuration {path} must be a mapping of fields to values")
    return values


def _read_deepspeed(path: Path) -> dict[str, Any]:
    """A user's DeepSpeed settings; a relative path counts from the current directory."""
    try:
        settings = json.loads(path.read_text())
    except OSError:
        raise TrainingError(f"deepspeed: {path} cannot be read; give the path of a JSON file") from None
    except ValueError as error:
        raise TrainingError(f"deepspeed: {path} is not valid JSON: {error}") from None
    if not isinstance(settings, dict):
        raise TrainingError(f"deepspeed: {path} must hold one JSON object")
    return settings


def _apply(values: dict[str, Any], override: str) -> None:
    key, value = parse_override(override)
    top, dot, inner = key.partition(".")
    if top not in PretrainConfig.model_fields:
        raise TrainingError(
            f"--set {override}: unknown key {top!r}{nearest(top, PretrainConfig.model_fields)}"
        )
    if not dot:
        values[top] = value
        return
    model_fields = [field.name for field in dataclasses.fields(ModelConfig)]
    if top != "model" or inner not in model_fields:
        raise TrainingError(
            f"--set {override}: unknown key {key!r}{nearest(key, [f'model.{f}' for f in model_fields])}"
        )
    model = values.get("model")
    if isinstance(model, str) and model in PRESETS:
        model = PRESETS[model].to_dict()
    if not isinstance(model, dict):
        raise TrainingError(f"--set {override}: model is {model!r}, neither a preset name nor a mapping")
    values["model"] = {**model, inner: value}
