"""What every launch shares: how exact matrix products are, padded tile sizes, and what a launch compiles to."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypedDict

import torch
import triton
from torch import Tensor


class LaunchOptions(TypedDict):
    """Options of a launch that the compiler sees."""

    num_warps: int
    num_stages: int


def registered_op(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register a function that launches kernels with torch, as ``cellfoundry::name``.

    It runs on the device of its first tensor: Triton launches on torch's current one, whose kernels must not touch
    another one's memory, and torch selects no device for an op written in Python.
    """

    def register(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def on_its_device(*arguments: Any) -> Any:
            with torch.cuda.device_of(next(x for x in arguments if isinstance(x, Tensor))):
                return function(*arguments)

        schema = torch.library.infer_schema(function, mutates_args=())
        return torch.library.custom_op(f"cellfoundry::{name}", on_its_device, mutates_args=(), schema=schema)

    return register


def dot_precision(dtype: torch.dtype) -> str:
    """``input_precision`` of ``tl.dot``: float32 stays float32, no tf32; half precision ignores it."""
    return "ieee" if dtype == torch.float32 else "tf32"


def tile(size: int) -> int:
    """The power of two that holds ``size``, at least 16 (the smallest side of a tensor core product)."""
    return max(16, triton.next_power_of_2(size))


# Compute capabilities whose blocks get 99 KiB of shared memory; A100 has 163, H100 227.
SMALL_SHARED_MEMORY = (86, 89, 120, 121)


@functools.cache
def capability_of(device: torch.device) -> int:
    """10 times the compute capability of a CUDA device (90 is H100); a CPU, the interpreter's, counts as 90."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def has_large_tiles(capability: int) -> bool:
    """Whether a device has H100's products, which take operands from shared memory, and enough of that."""
    return capability >= 90 and capability not in SMALL_SHARED_MEMORY


@dataclass(frozen=True)
class Launch:
    """A kernel as it is launched at the published model's sizes: what tests and the compile report compile.

    Attributes:
        name: op, kernel and what varies, for example ``varlen_attention-forward_kernel-d64-bf16``.
        kernel: the ``triton.jit`` function.
        types: Triton type of each argument that is no constant, for example ``*bf16``, ``*fp32``, ``i32``, ``fp32``.
        constants: values of the ``constexpr`` arguments.
        options: of the launch.
        aligned: further integer arguments that are multiples of 16 in real models; pointers always are.
        capabilities: of the devices that launch it so.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: LaunchOptions
    aligned: tuple[str, ...] = ()
    capabilities: tuple[int, ...] = (80, 90)


TYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def argument_types(
    kernel: Any, dtype: torch.dtype, constants: dict[str, Any], other: dict[str, str]
) -> dict[str, str]:
    """Types of a kernel's arguments: pointers to ``dtype``, else ``i32``, but for those named in ``other``."""
    default = {name: f"*{TYPE_NAMES[dtype]}" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
    return {name: other.get(name, kind) for name, kind in default.items() if name not in constants}


def all_published_launches() -> list[Launch]:
    """``published_launches()`` of every op: each package here that has a ``kernel`` module."""
    import cellfoundry_kernels

    found = pkgutil.iter_modules(cellfoundry_kernels.__path__, "cellfoundry_kernels.")
    modules = [f"{package.name}.kernel" for package in found if package.ispkg]
    kernels = [import_module(name) for name in modules if find_spec(name)]
    return [launch for kernel in kernels for launch in kernel.published_launches()]
