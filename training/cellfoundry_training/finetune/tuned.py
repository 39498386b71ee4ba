"""What of an encoder learns: nothing, its last layers, all of it, or low-rank adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import nn

from cellfoundry_model.architecture import CellModel
from cellfoundry_model.cell_encoder import CellEncoder
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.finetune.config import FinetuneConfig

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTED = ["qkv", "attention_out", "ffn_in", "ffn_out"]
"""The linear maps of an encoder layer."""


def check_tune(config: FinetuneConfig, depth: int) -> None:
    """TrainingError where an encoder of ``depth`` layers cannot be tuned so, before any work is done."""
    if config.tune == "last" and config.last_layers > depth:
        raise TrainingError(
            f"--last {config.last_layers}: the encoder has {depth} layers; give a number from 1 to {depth}"
        )
    if config.tune == "lora":
        _peft()


def tuned(model: CellModel, config: FinetuneConfig) -> nn.Module:
    """The model's encoder with gradients for what ``config.tune`` says, adapters put in where it says lora."""
    encoder = CellEncoder(model, config.pool)
    encoder.requires_grad_(False)
    if config.tune == "full":
        encoder.requires_grad_(True)
    elif config.tune == "last":
        encoder.encoder.layers[-config.last_layers :].requires_grad_(True)
        encoder.encoder.norm.requires_grad_(True)
    elif config.tune == "lora":
        peft = _peft()
        adapters = peft.LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=ADAPTED)
        return cast(nn.Module, peft.get_peft_model(encoder, adapters))
    return encoder


def merged(encoder: nn.Module, config: FinetuneConfig) -> nn.Module:
    """What ``tuned`` gave, adapters added into the weights they adapt, which are the model's again."""
    if config.tune == "lora":
        return cast("PeftModel", encoder).merge_and_unload()
    return encoder


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise TrainingError("--tune lora needs peft: pip install 'cellfoundry[lora]'") from None
    return peft
