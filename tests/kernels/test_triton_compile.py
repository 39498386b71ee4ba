"""Every kernel compiles for A100 and H100 at the tile sizes that run, without a GPU and without register spills."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton exists on Linux only")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from cellfoundry_kernels.triton_ops import pool_cells, value_embedding, varlen_attention  # noqa: E402

TYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
# Arguments whose type is not that of the activations.
TYPES = {
    "cu_seqlens_ptr": "*i32",
    "lse_ptr": "*fp32",
    "delta_ptr": "*fp32",
    "value_ptr": "*fp32",
    "alpha": "fp32",
    "scale": "fp32",
    "scale_log2": "fp32",
}


class Case(NamedTuple):
    """A kernel as it is launched."""

    kernel: Any
    dtype: torch.dtype
    constants: dict[str, Any]
    options: Any


def cases() -> dict[str, Case]:
    """fp16 compiles to what bf16 compiles to, with another type in the same instructions."""
    fp32, bf16 = torch.float32, torch.bfloat16
    found = {}
    for dtype in (fp32, bf16):
        tiles, options = value_embedding.tiles(dtype, 100), value_embedding.options()
        case = Case(value_embedding.forward_kernel, dtype, tiles, options)
        found[f"value_embedding-bins100-{TYPE_NAMES[dtype]}"] = case
    for mode in ("all", "max"):
        constants = {"POOL_ALL": mode == "all", **pool_cells.TILES}
        found[f"pool_cells-{mode}-bf16"] = Case(
            pool_cells.forward_kernel, bf16, constants, pool_cells.options()
        )
    for head_dim, dtype in ((64, fp32), (32, bf16), (64, bf16), (128, bf16)):
        tiles = varlen_attention.tiles(dtype, head_dim)
        launches = (
            (varlen_attention.forward_kernel, varlen_attention.forward_options(head_dim)),
            (varlen_attention.backward_keys_kernel, varlen_attention.backward_options()),
            (varlen_attention.backward_queries_kernel, varlen_attention.backward_options()),
        )
        for kernel, options in launches:
            name = f"varlen_attention-{kernel.fn.__name__}-d{head_dim}-{TYPE_NAMES[dtype]}"
            found[name] = Case(kernel, dtype, tiles, options)
    return found


CASES = cases()


def argument_type(name: str, dtype: torch.dtype) -> str:
    return TYPES.get(name) or (f"*{TYPE_NAMES[dtype]}" if name.endswith("_ptr") else "i32")


def stack_bytes(cubin: bytes, folder: Path) -> int:
    """Stack of the compiled kernel: more than none means that registers spilled."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    return sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))


@pytest.mark.parametrize("architecture", [80, 90], ids=["sm80", "sm90"])
@pytest.mark.parametrize("name", CASES)
def test_compiles_without_spills(name: str, architecture: int, tmp_path: Path) -> None:
    case = CASES[name]
    names = case.kernel.arg_names
    signature = {n: "constexpr" if n in case.constants else argument_type(n, case.dtype) for n in names}
    constants = {(names.index(n),): value for n, value in case.constants.items()}
    # Tensors of torch start at multiples of 16 bytes; widths and strides of real models are multiples of 16.
    aligned = [n for n in names if n.endswith(("_ptr", "_stride")) or n in ("width", "head_dim")]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(case.options))
    assert stack_bytes(compiled.asm["cubin"], tmp_path) == 0
    # Shared memory of one block: 163 KiB on A100, 227 KiB on H100.
    assert compiled.metadata.shared <= (163 if architecture == 80 else 227) * 1024
