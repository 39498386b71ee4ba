"""Time the attention kernels' tile sizes on this GPU and print table entries for ``cellfoundry_kernels.varlen.tiles``.

``python -m cellfoundry_bench.tune_attention`` takes some minutes, most of them the compiler's. The batch is 64
cells of real lengths, 12 heads, bfloat16.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from cellfoundry_bench.measure import median_seconds
from cellfoundry_bench.ragged import cu_seqlens_of, real_lengths
from cellfoundry_kernels.launch import capability_of
from cellfoundry_kernels.varlen.kernel import KERNELS, launch
from cellfoundry_kernels.varlen.schedule import make_schedule
from cellfoundry_kernels.varlen.tiles import Kernel, Tile

HEAD_DIMS = (32, 64, 128)
HEADS = 12
# Products of a kernel, 2 K n^2 FLOPs a head each.
PRODUCTS: dict[Kernel, int] = {"forward": 2, "keys": 4, "queries": 3}
CANDIDATES = [
    Tile(rows, columns, warps, stages)
    for rows, columns, stages in itertools.product((64, 128), (32, 64, 128), (2, 3, 4))
    for warps in ((4,) if rows == 64 else (4, 8))
]


def tune(
    kernel: Kernel,
    head_dim: int,
    lengths: npt.NDArray[np.int64],
    candidates: list[Tile],
    *,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    heads: int = HEADS,
    rounds: int = 20,
) -> list[tuple[float, Tile]]:
    """Median seconds of one launch with each tile that this GPU can run, the fastest first."""
    tokens, scale = int(lengths.sum()), head_dim**-0.5
    cu_seqlens = cu_seqlens_of(lengths, device)
    # As in the model, q, k and v are views of one projection.
    q_NHK, k_NHK, v_NHK = torch.randn(tokens, 3, heads, head_dim, device=device).to(dtype).unbind(1)
    grad_NHK, grads_NHK = torch.randn_like(q_NHK), [torch.empty_like(q_NHK).contiguous() for _ in "kv"]
    lse_HN, delta_HN = (torch.zeros(heads, tokens, device=device) for _ in range(2))
    tensors = {
        "forward": (grads_NHK[0], lse_HN),
        "keys": (grad_NHK.contiguous(), *grads_NHK, lse_HN, delta_HN),
        "queries": (grad_NHK.contiguous(), grads_NHK[0], lse_HN, delta_HN),
    }[kernel]
    scales = (scale,) if kernel == "forward" else (scale, scale)
    timed = []
    for sizes in candidates:
        order = make_schedule(cu_seqlens, tokens, sizes.rows)

        def run(sizes: Tile = sizes, order: torch.Tensor = order) -> None:
            launch(kernel, (q_NHK, k_NHK, v_NHK), tensors, cu_seqlens, order, scales, sizes)

        if _fits(run):
            timed.append((median_seconds(run, rounds=rounds), sizes))
    return sorted(timed, key=lambda pair: pair[0])


def _fits(run: Callable[[], None]) -> bool:
    """Whether the GPU has the shared memory and registers that a launch asks for."""
    from triton.runtime.errors import OutOfResources

    try:
        run()
    except OutOfResources:
        return False
    return True


def main() -> None:
    """Print the fastest tile of each kernel and head dim, with the TFLOP/s it reached."""
    if not torch.cuda.is_available():
        sys.exit("tune_attention times kernels and this machine has no NVIDIA GPU: run it on one that has.")
    lengths = real_lengths(64) + 2
    capability = capability_of(torch.device("cuda"))
    print(f"# {torch.cuda.get_device_name()}, 64 cells of real lengths, {HEADS} heads, bfloat16")
    for kernel in KERNELS:
        for head_dim in HEAD_DIMS:
            seconds, sizes = tune(kernel, head_dim, lengths, CANDIDATES)[0]
            flops = PRODUCTS[kernel] * 2 * HEADS * head_dim * float((lengths.astype(np.float64) ** 2).sum())
            print(f'({capability}, "{kernel}") {head_dim}: {sizes}  # {flops / seconds / 1e12:.0f} TFLOP/s')


if __name__ == "__main__":
    main()
