"""What FAVOR+ compiles to in the decoders of the presets, for the compile tests and report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from cellfoundry_kernels.favor.backward_keys import backward_keys_kernel
from cellfoundry_kernels.favor.backward_queries import backward_queries_kernel
from cellfoundry_kernels.favor.backward_sums import gradient_context_kernel, gradient_sums_kernel
from cellfoundry_kernels.favor.forward_keys import context_kernel, key_sums_kernel
from cellfoundry_kernels.favor.forward_queries import queries_kernel
from cellfoundry_kernels.favor.tiles import (
    Kernel,
    Tile,
    constants,
    operand_dtype,
    reduce_constants,
    reduce_options,
    sums_constants,
    tile_for,
)
from cellfoundry_kernels.launch import TYPE_NAMES, Launch, LaunchOptions, argument_types

KERNELS: dict[Kernel, Any] = {
    "key_sums": key_sums_kernel,
    "queries": queries_kernel,
    "backward_queries": backward_queries_kernel,
    "gradient_sums": gradient_sums_kernel,
    "backward_keys": backward_keys_kernel,
}
# What adds up the splits of a kernel's sums.
REDUCTIONS: dict[Kernel, Any] = {"key_sums": context_kernel, "gradient_sums": gradient_context_kernel}


def published_launches() -> list[Launch]:
    """What runs in the decoders of the presets: heads of 16, 32 and 64, with 44, 110 and 266 features.

    Key weights, of a sampled decoder, at the largest in bfloat16: there the kernels use 235 to 255 registers of 255.
    """
    found = [
        launch
        for features, head_dim in ((44, 16), (110, 32), (266, 64))
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        for capability in (80, 90)
        for launch in _launches(features, head_dim, dtype, capability)
    ]
    return found + [
        _weighted(launch)
        for capability in (80, 90)
        for launch in _launches(266, 64, torch.bfloat16, capability)
        if "weight_ptr" in launch.constants
    ]


def _launches(features: int, head_dim: int, dtype: torch.dtype, capability: int) -> list[Launch]:
    """What runs at one shape."""
    found = [
        launch_with(tile_for(name, dtype, capability, head_dim), name, features, head_dim, dtype, capability)
        for name in KERNELS
    ]
    # Those of float16 are float32's.
    for name, kernel in REDUCTIONS.items() if dtype != torch.float16 else ():
        chosen = reduce_constants(features, head_dim, dtype, tile_for(name, dtype, capability, head_dim))
        found.append(_launch(kernel, dtype, chosen, reduce_options(features), capability))
    return found


def launch_with(
    sizes: Tile, name: Kernel, features: int, head_dim: int, dtype: torch.dtype, capability: int
) -> Launch:
    """A kernel's launch over positions at these sizes."""
    kernel = KERNELS[name]
    chosen = (sums_constants if name in REDUCTIONS else constants)(features, head_dim, dtype, sizes)
    if "HOLDS_RESTS" in kernel.arg_names:
        chosen |= {"HOLDS_RESTS": sizes.holds_rests}
    return _launch(kernel, dtype, chosen, sizes.options, capability)


def _weighted(launch: Launch) -> Launch:
    """The launch with a weight for every key."""
    constants = {name: value for name, value in launch.constants.items() if name != "weight_ptr"}
    types = launch.types | {"weight_ptr": "*fp32"}
    return replace(launch, name=f"{launch.name}-weighted", types=types, constants=constants)


def _launch(
    kernel: Any, dtype: torch.dtype, chosen: dict[str, Any], options: LaunchOptions, capability: int
) -> Launch:
    """One launch; its tensors are inputs and gradients in ``dtype``, operands made inside, or float32."""
    operands = ("projection_ptr", "rest_ptr", "context_ptr", "table_ptr")
    inputs = ("q_ptr", "k_ptr", "v_ptr", "out_ptr", "grad_out_ptr", "grad_q_ptr", "grad_k_ptr", "grad_v_ptr")
    other = dict.fromkeys(("scale", "half", "root", "epsilon"), "fp32")
    for name in kernel.arg_names:
        if name.endswith("_ptr") and name not in inputs:
            other[name] = f"*{TYPE_NAMES[operand_dtype(dtype)]}" if name in operands else "*fp32"
    if "weight_ptr" in kernel.arg_names:
        chosen = chosen | {"weight_ptr": None}
    types = argument_types(kernel, dtype, chosen, other)
    aligned = ("split_positions", *(name for name in types if name.endswith(("_cell", "_head", "_row"))))
    shape = f"m{chosen['FEATURES']}-d{chosen['CHANNELS']}"
    name = f"favor_attention-{kernel.fn.__name__}-{shape}-{TYPE_NAMES[dtype]}"
    return Launch(name, kernel, types, chosen, options, aligned, (capability,))
