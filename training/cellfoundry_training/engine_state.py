"""Weights and AdamW's moments of a DeepSpeed engine by parameter name, whole and float32, at any ZeRO stage.

DeepSpeed lays them out in flat partitions that differ with stage, precision and number of ranks, and its own
checkpoints keep that layout. Here every parameter is put together from its partitions and cut again on loading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cellfoundry_training.engine import whole_masters, whole_weight

MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHT = "weight"
Lookup = Callable[[str], Tensor]
"""Gives a tensor by its name in a checkpoint."""


def own_part(engine: Any, rank: int, ranks: int) -> dict[str, Tensor]:
    """Copies on CPU of the tensors that ``rank`` keeps in a checkpoint: weights, moments and, on rank 0, buffers.

    Names are ``weight/NAME``, ``exp_avg/NAME`` and ``exp_avg_sq/NAME``; all ranks' parts together are the whole. The
    copies are the caller's: later steps do not change them. Collective.
    """
    parameters = dict(engine.module.named_parameters())
    whole, stepped = whole_masters(engine), optimizer_step(engine) > 0
    owners = part_owners({name: _numel(each) for name, each in parameters.items()}, ranks)
    part: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors = {WEIGHT: whole_weight(parameter, whole)}
        for moment in MOMENTS:
            # Before the first step AdamW has none.
            shape = getattr(parameter, "ds_shape", parameter.shape)
            tensors[moment] = (
                _whole_moment(engine, parameter, whole, moment) if stepped else torch.zeros(shape)
            )
        if owners[name] == rank:
            part |= {f"{kind}/{name}": _copy(tensor) for kind, tensor in tensors.items()}
    if rank == 0:
        part |= {f"{WEIGHT}/{name}": _copy(buffer) for name, buffer in engine.module.named_buffers()}
    return part


def part_owners(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Which rank keeps each tensor: the largest first, each to the rank that has least so far."""
    load = [0] * ranks
    owners = {}
    for name in sorted(sizes, key=lambda each: (-sizes[each], each)):
        owners[name] = load.index(min(load))
        load[owners[name]] += sizes[name]
    return owners


def load_weights(model: nn.Module, lookup: Lookup) -> None:
    """Fill ``model`` before an engine is made of it, which then derives every layout and precision itself."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensor.copy_(lookup(f"{WEIGHT}/{name}"))


def load_optimizer(engine: Any, lookup: Lookup, optimizer_step: int) -> None:
    """Set the float32 masters and the moments of an engine whose model was filled by ``load_weights``."""
    optimizer, whole = inner_optimizer(engine), whole_masters(engine)
    for partition in whole.values() if whole else _partitions(engine):
        optimizer.state[partition] = {
            "step": torch.tensor(float(optimizer_step)),
            **{moment: torch.zeros_like(partition) for moment in MOMENTS},
        }
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        # What DeepSpeed does after its first step: link each parameter to its place in the moments.
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            for kind in (WEIGHT, *MOMENTS):
                value, moment = lookup(f"{kind}/{name}"), None if kind == WEIGHT else kind
                if whole:
                    master = whole[parameter]
                    (optimizer.state[master][moment] if moment else master).copy_(value)
                else:
                    _set_partitioned(parameter, value, moment)


def optimizer_step(engine: Any) -> int:
    """Updates that AdamW has counted; equal for all parameters."""
    return max((int(state["step"]) for state in inner_optimizer(engine).state.values() if state), default=0)


def inner_optimizer(engine: Any) -> Any:
    """torch's AdamW inside of DeepSpeed's optimizer, or DeepSpeed's where it is that."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _partitions(engine: Any) -> list[Tensor]:
    """The flat partitions by which AdamW holds its state, at ZeRO 3, and at 1 and 2."""
    for name in (
        "fp32_partitioned_groups_flat",
        "single_partition_of_fp32_groups",
        "fp32_groups_flat_partition",
    ):
        if hasattr(engine.optimizer, name):
            return list(getattr(engine.optimizer, name))
    raise AssertionError(f"DeepSpeed's {type(engine.optimizer).__name__} is not known here")


def _whole_moment(
    engine: Any, parameter: nn.Parameter, whole: dict[nn.Parameter, Tensor], moment: str
) -> Tensor:
    from deepspeed.utils import safe_get_full_optimizer_state

    if whole:
        state: Tensor = inner_optimizer(engine).state[whole[parameter]][moment]
        return state
    return safe_get_full_optimizer_state(parameter, moment)


def _set_partitioned(parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if hasattr(parameter, "ds_tensor"):
        # DeepSpeed's own way to set a whole parameter at ZeRO 3 fails where ranks do not divide it.
        part = _stage3_part(parameter, value)
        if moment is None:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, moment)
    elif moment is None:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, moment)


def _stage3_part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's equal share of a flat parameter, the last one filled up with zeros."""
    size = parameter.ds_tensor.numel()
    group = parameter.ds_process_group
    flat = value.flatten()
    padded = torch.nn.functional.pad(flat, (0, size * group.size() - flat.numel()))
    return padded.narrow(0, size * group.rank(), size)


def _numel(parameter: Any) -> int:
    return int(parameter.ds_numel) if hasattr(parameter, "ds_numel") else int(parameter.numel())


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
