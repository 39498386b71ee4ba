"""The DeepSpeed engine of one rank: our configuration poured into one JSON of knobs per ZeRO stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cellfoundry_training.config import PretrainConfig

DEEPSPEED_DIR = Path(__file__).parent / "deepspeed"


def deepspeed_settings(config: PretrainConfig) -> dict[str, Any]:
    """The stage's JSON file with what the run's configuration decides filled in."""
    settings: dict[str, Any] = json.loads((DEEPSPEED_DIR / f"zero{config.zero_stage}.json").read_text())
    settings["train_micro_batch_size_per_gpu"] = config.batch_cells
    settings["gradient_accumulation_steps"] = config.gradient_accumulation
    settings["gradient_clipping"] = config.clip
    settings["bf16"] = {"enabled": config.precision == "bf16"}
    return settings


def start_engine(model: nn.Module, config: PretrainConfig, device: torch.device) -> Any:
    """Join the ranks' process group and wrap ``model``; every rank must call it."""
    import deepspeed
    import deepspeed.ops

    # On CPU DeepSpeed would compile a shared-memory transport at start-up, for minutes and only with ninja at hand;
    # gloo does the same work. Saying "not compatible" is its own way to leave an op out.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
    # torch's AdamW instead of DeepSpeed's fused one, which would be compiled at start-up too.
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_settings(config))
    return engine


def full_weights(engine: Any) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of the wrapped model, whole and float32 on CPU; all ranks must call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in engine.module.named_parameters():
        # The optimizer's float32 master where there is one (bf16, ZeRO 1 to 3); else the parameter is it.
        master = safe_get_full_fp32_param(parameter)
        weights[name] = (parameter if master is None else master).detach().float().cpu()
    for name, buffer in engine.module.named_buffers():
        weights[name] = buffer.detach().float().cpu()
    return weights
