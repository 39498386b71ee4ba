"""The DeepSpeed engine of one rank: our configuration poured into one JSON of knobs per ZeRO stage."""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from cellfoundry_model.architecture import CellModel
from cellfoundry_training.config import PretrainConfig
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.guarded_adamw import GuardedAdamW
from cellfoundry_training.step_clock import StepClock

DEEPSPEED_DIR = Path(__file__).parent / "deepspeed"
COLLECTIVES = (
    *(
        "all_reduce",
        "reduce",
        "broadcast",
        "barrier",
        "all_gather",
        "all_gather_into_tensor",
        "reduce_scatter",
    ),
    *("reduce_scatter_tensor", "all_reduce_coalesced", "all_gather_coalesced"),
)
"""Methods of DeepSpeed's backend through which its engines talk to other ranks."""


def deepspeed_settings(config: PretrainConfig) -> dict[str, Any]:
    """The stage's JSON file, or the user's own, with what the run's configuration decides filled in."""
    stage_file = DEEPSPEED_DIR / f"zero{config.zero_stage}.json"
    settings: dict[str, Any] = json.loads(stage_file.read_text())
    if config.deepspeed is not None:
        settings.pop("zero_optimization")
        settings |= json.loads(json.dumps(config.deepspeed))
    for key, value in config.deepspeed_decided.items():
        *sections, name = key.split(".")
        section = settings
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    if _clips_itself(config):
        settings["gradient_clipping"] = 0.0
    return settings


def prepare_model(model: CellModel, config: PretrainConfig, device: torch.device) -> CellModel:
    """Switch on activation checkpointing and compilation where the configuration asks for them.

    Raises:
        TrainingError: compilation without a compiler.
    """
    if config.activation_checkpointing:
        model.checkpoint_activations()
    if config.compile:
        _check_compiler(device)
        # Layer by layer: all layers of a side share one compilation, and what picks positions by masks, which
        # torch.compile cannot trace, stays outside. Lengths differ from batch to batch, hence dynamic shapes.
        for layer in (*model.encoder.layers, *model.decoder.layers):
            layer.compile(dynamic=True)
    return model


def _check_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise TrainingError("compile needs triton on a GPU: install triton, or set compile=false")
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise TrainingError(
            f"compile needs a C++ compiler on CPU and {compiler!r} is not there: install g++, name another one by the "
            "variable CXX, or set compile=false"
        )


def start_engine(model: nn.Module, config: PretrainConfig, device: torch.device) -> Any:
    """Join the ranks' process group and wrap ``model``; every rank must call it.

    Raises:
        TrainingError: the user's DeepSpeed settings are not valid.
    """
    import deepspeed
    import deepspeed.ops
    import deepspeed.runtime.compiler

    # On CPU DeepSpeed would compile a shared-memory transport at start-up, for minutes and only with ninja at hand;
    # gloo does the same work. Saying "not compatible" is its own way to leave an op out.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It looks whether the optimizer is its Muon, whose module asks for compiled functions as it is imported: 1 s for
    # torch's compiler, which ours has no use for.
    deepspeed.runtime.compiler.compile = lambda: deepspeed.runtime.compiler.dummy_decorator
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
    try:
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=_optimizer(model, config), config=deepspeed_settings(config)
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise TrainingError(
            f"deepspeed: {key} {first['input']!r} is refused by DeepSpeed: {first['msg']}; correct the JSON file"
        ) from None
    _undo_trial_step(engine)
    return engine


def _undo_trial_step(engine: Any) -> None:
    """In bf16 without ZeRO DeepSpeed makes AdamW's state by a step on zero gradients, which decays the masters and
    counts as the first step in the bias correction: training would begin with updates of 0.75 times their size.
    """
    masters = whole_masters(engine)
    if masters:
        getattr(engine.optimizer, "optimizer", engine.optimizer).state.clear()
    for parameter, master in masters.items():
        if master is not parameter:
            master.data.copy_(parameter.data)


def _optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    """torch's AdamW instead of DeepSpeed's fused one, which would be compiled at start-up."""
    rate, decay = config.learning_rate, config.weight_decay
    if _clips_itself(config):
        return GuardedAdamW(model.parameters(), clip=config.clip, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)


def _clips_itself(config: PretrainConfig) -> bool:
    """Whether DeepSpeed leaves the gradients to the optimizer as they are, without a look whether they are finite."""
    return config.zero_stage == 0 and config.precision == "fp32"


def time_collectives(clock: StepClock) -> None:
    """From now on count DeepSpeed's collectives as communication; where it waits for an asynchronous one later,
    that wait counts to the phase it happens in.
    """
    from deepspeed.comm import comm

    for name in COLLECTIVES:
        setattr(comm.cdb, name, _timed(getattr(type(comm.cdb), name).__get__(comm.cdb), clock))


def _timed(collective: Callable[..., Any], clock: StepClock) -> Callable[..., Any]:
    @functools.wraps(collective)
    def timed(*arguments: Any, **settings: Any) -> Any:
        with clock.communicating():
            return collective(*arguments, **settings)

    return timed


def full_weights(engine: Any) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of the wrapped model, whole and float32 on CPU; all ranks must call it."""
    whole = whole_masters(engine)
    weights = {
        name: whole_weight(parameter, whole).detach().float().cpu()
        for name, parameter in engine.module.named_parameters()
    }
    for name, buffer in engine.module.named_buffers():
        weights[name] = buffer.detach().float().cpu()
    return weights


def whole_masters(engine: Any) -> dict[nn.Parameter, torch.Tensor]:
    """Each parameter's float32 master where every rank has it whole, which is without ZeRO; empty with it."""
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):  # float32: parameters are their own masters
        return {parameter: parameter for parameter in engine.module.parameters()}
    if hasattr(optimizer, "fp32_groups"):  # bf16
        chain = itertools.chain.from_iterable
        return dict(zip(chain(optimizer.fp16_groups), chain(optimizer.fp32_groups), strict=True))
    return {}


def whole_weight(parameter: nn.Parameter, whole: dict[nn.Parameter, torch.Tensor]) -> torch.Tensor:
    """A parameter's float32 master: of ``whole_masters``, or put together from all ranks, who must all call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    return whole[parameter] if parameter in whole else safe_get_full_fp32_param(parameter)
