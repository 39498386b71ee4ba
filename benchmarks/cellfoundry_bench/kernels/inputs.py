"""Random inputs of the kernels in the layout the model gives them; for benchmarks, tuning and tests.

Without a generator torch's own is used. Random numbers are drawn in float32 where torch makes new tensors, then moved.

Shape legend: N tokens over all cells, C cells, H heads, P positions, K head dim, M features, B bins, D width.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def dtype_on(device: str) -> torch.dtype:
    """What models run in there: bfloat16 on CUDA, float32 on a CPU."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def packed_qkv(
    tokens: int,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: str | None = None,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each (N, H, K): views of one packed projection."""
    packed_N3HK = torch.randn(tokens, 3, heads, head_dim, generator=generator).to(device, dtype)
    q_NHK, k_NHK, v_NHK = packed_N3HK.unbind(1)
    return q_NHK, k_NHK, v_NHK


def split_heads(
    cells: int,
    heads: int,
    positions: int,
    head_dim: int,
    dtype: torch.dtype,
    device: str | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Queries, keys or values as the decoder splits them into heads: a view (C, H, P, K) of (C, P, H K)."""
    x_CPD = torch.randn(cells, positions, heads * head_dim, generator=generator).to(device, dtype)
    return x_CPD.unflatten(2, (heads, -1)).transpose(1, 2)


def embedding_weights(
    bins: int,
    width: int,
    dtype: torch.dtype,
    device: str | None = None,
    generator: Generator | None = None,
) -> list[Tensor]:
    """The two layers as torch initialises a Linear, (B, 1), (B,), (B, B), (B,), and the table (B, D)."""
    layers = [(bins, 1, 1), (bins, 1), (bins, bins, bins), (bins, bins)]
    uniform = [(2 * torch.rand(shape, generator=generator) - 1) / fan_in**0.5 for *shape, fan_in in layers]
    table_BD = torch.randn(bins, width, generator=generator)
    return [x.to(device, dtype) for x in (*uniform, table_BD)]


def expression_values(tokens: int, device: str | None = None, generator: Generator | None = None) -> Tensor:
    """Values as log1p of normalised counts has them, float32 (N,) in [0, 10)."""
    return (10 * torch.rand(tokens, generator=generator)).to(device)
