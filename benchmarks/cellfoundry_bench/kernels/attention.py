"""Attention over ragged cells: ours against FlashAttention-2, FlexAttention with a document mask, and padded SDPA.

Shape legend: N tokens over all cells, C cells, L longest cell, H heads, K head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import cellfoundry_kernels as kernels
from cellfoundry_bench.kernels.bars import not_measured
from cellfoundry_bench.kernels.inputs import dtype_on, packed_qkv
from cellfoundry_bench.kernels.timing import ROUNDS, Cost, Work, compare_on, rotated
from cellfoundry_bench.measure import Comparison
from cellfoundry_bench.ragged import cu_seqlens_of, real_lengths
from cellfoundry_bench.results import Row

HEADS, HEAD_DIM = 12, 64
BARS = {"forward": 1.15, "backward": 1.1}
"""Against the better of FlashAttention-2 and FlexAttention, H200, bf16."""
PADDED_BAR = 1.5
"""Against padded cuDNN, where cells differ in length; among equal ones nothing is padded."""


@dataclass(frozen=True)
class Side:
    """One way to compute attention.

    Attributes:
        call: the forward pass.
        leaves: queries, keys and values as this way takes them.
    """

    call: Callable[[], Tensor]
    leaves: tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Ragged:
    """Cells of given token counts as packed queries, keys and values.

    Attributes:
        q_NHK, k_NHK, v_NHK: random, in half precision on CUDA and float32 on a CPU.
        cu_seqlens: int32, (C + 1,).
        longest: tokens of the longest cell.
    """

    q_NHK: Tensor
    k_NHK: Tensor
    v_NHK: Tensor
    cu_seqlens: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int64], device: str, heads: int = HEADS, seed: int = 0) -> Ragged:
        """Random inputs; the same seed gives the same."""
        generator = torch.Generator().manual_seed(seed)
        qkv = packed_qkv(int(lengths.sum()), heads, HEAD_DIM, dtype_on(device), device, generator)
        return cls(*qkv, cu_seqlens_of(lengths, device), int(lengths.max()))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values."""
        return self.q_NHK, self.k_NHK, self.v_NHK


def ours(cells: Ragged) -> Side:
    """Our op."""
    q_NHK, k_NHK, v_NHK = cells.tensors
    bounds, longest = cells.cu_seqlens, cells.longest
    return Side(lambda: kernels.varlen_attention(q_NHK, k_NHK, v_NHK, bounds, longest), cells.tensors)


def flash(cells: Ragged) -> Side:
    """FlashAttention-2 as torch ships it for packed sequences."""
    from torch.nn.attention.varlen import varlen_attn

    q_NHK, k_NHK, v_NHK = cells.tensors
    bounds, longest = cells.cu_seqlens, cells.longest

    def call() -> Tensor:
        out = varlen_attn(q_NHK, k_NHK, v_NHK, bounds, bounds, longest, longest)
        assert isinstance(out, Tensor)
        return out

    return Side(call, cells.tensors)


def flex(cells: Ragged) -> Side:
    """FlexAttention, compiled, with the mask of cells ("documents"); making the mask is not timed."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # After eight batches torch would stop compiling and run the unfused version, which holds all N x N logits.
    torch.compiler.reset()
    tokens, device = len(cells.q_NHK), cells.q_NHK.device
    cells_C = torch.arange(len(cells.cu_seqlens) - 1, device=device)
    cell_N = torch.repeat_interleave(cells_C, cells.cu_seqlens.diff().long())

    def same_cell(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cell_N[query] == cell_N[key]

    mask = torch.compile(create_block_mask, dynamic=False)(same_cell, None, None, tokens, tokens, device)
    compiled = torch.compile(flex_attention, dynamic=False)
    q_1HNK, k_1HNK, v_1HNK = (x_NHK.transpose(0, 1)[None] for x_NHK in cells.tensors)
    return Side(lambda: compiled(q_1HNK, k_1HNK, v_1HNK, block_mask=mask), (q_1HNK, k_1HNK, v_1HNK))


def padded(cells: Ragged) -> Side:
    """SDPA on cells padded to the longest, by cuDNN on CUDA; padding is not timed.

    cuDNN gets no mask: torch would write one of (C, L, L) logits in every call, and a mask makes nothing faster. So it
    is timed at its best, and what it gives is right for cells of equal length only.
    """
    q, k, v = (_pad(x, cells.cu_seqlens, cells.longest) for x in cells.tensors)
    is_token_CL = _token_mask(cells.cu_seqlens, cells.longest)
    backends = [SDPBackend.CUDNN_ATTENTION] if q.is_cuda else list(SDPBackend.__members__.values())
    mask = None if q.is_cuda else is_token_CL[:, None, None, :]

    def call() -> Tensor:
        with sdpa_kernel(backends):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return Side(call, (q, k, v))


PEERS: dict[str, Callable[[Ragged], Side]] = {
    "FlashAttention-2 (torch varlen_attn)": flash,
    "FlexAttention, document mask": flex,
}
PADDED = {"cuda": "cuDNN SDPA, padded, no mask", "cpu": "SDPA, padded"}


def attention_cost(part: str, lengths: npt.NDArray[np.int64], heads: int, itemsize: int) -> Cost:
    """Useful FLOPs 4 H K sum(n^2) forward, 2.5 times that backward.

    Memory traffic: q, k, v read and the result written; backward reads those four and a gradient and writes three.
    """
    flops = 4.0 * heads * HEAD_DIM * float((lengths.astype(np.float64) ** 2).sum())
    element = float(lengths.sum()) * heads * HEAD_DIM * itemsize
    return Cost(flops, 4 * element) if part == "forward" else Cost(2.5 * flops, 8 * element)


def attention_rows(
    lengths: npt.NDArray[np.int64], what: str, device: str, *, heads: int = HEADS, rounds: int = ROUNDS
) -> list[Row]:
    """Forward and backward on one batch, against each packed peer (CUDA only) and the padded one."""
    note = f"{len(lengths)} cells, {lengths.min()} to {lengths.max()} tokens, {heads} heads of {HEAD_DIM}"
    rows = []
    for name, (peer, bars) in _peers_on(device, lengths).items():
        for part in BARS:
            cost = attention_cost(part, lengths, heads, dtype_on(device).itemsize)
            timed = _compare(part, peer, lengths, device, heads, rounds)
            rows.append(
                timed.rate_row(
                    _title(part, what), cost.flops / 1e12, UNIT, name, bar=bars.get(part), note=note
                )
            )
    return rows


def unmeasured_attention_rows() -> list[Row]:
    """Every bar of a GPU, for a machine without one."""
    return [
        not_measured(_title(part, what), UNIT, peer=name, bar=bar)
        for what, lengths in attention_batches("cuda")
        for name, (_, bars) in _peers_on("cuda", lengths).items()
        for part, bar in bars.items()
    ]


UNIT = "useful TFLOP/s"


def _title(part: str, what: str) -> str:
    return f"varlen_attention {part}, {what}"


def _peers_on(
    device: str, lengths: npt.NDArray[np.int64]
) -> dict[str, tuple[Callable[[Ragged], Side], dict[str, float]]]:
    """What ours is compared with on a batch, and the bar of each pass against it."""
    if device == "cpu":
        return {PADDED[device]: (padded, {})}
    is_ragged = lengths.min() < lengths.max()
    of_padded = dict.fromkeys(BARS, PADDED_BAR) if is_ragged else {}
    return {**{name: (peer, BARS) for name, peer in PEERS.items()}, PADDED[device]: (padded, of_padded)}


def _compare(
    part: str,
    peer: Callable[[Ragged], Side],
    lengths: npt.NDArray[np.int64],
    device: str,
    heads: int,
    rounds: int,
) -> Comparison:
    n_bytes = attention_cost("forward", lengths, heads, dtype_on(device).itemsize).bytes

    def work(side: Callable[[Ragged], Side]) -> Work:
        return rotated(lambda seed: attention_work(side, part, lengths, device, heads, seed), device, n_bytes)

    return compare_on(device, work(ours), work(peer), rounds)


def attention_work(
    side: Callable[[Ragged], Side],
    part: str,
    lengths: npt.NDArray[np.int64],
    device: str,
    heads: int = HEADS,
    seed: int = 0,
) -> Work:
    """One pass of one way, on inputs of its own."""
    chosen = side(Ragged.of(lengths, device, heads, seed))
    return chosen.call if part == "forward" else backward_of(chosen)


def backward_of(side: Side) -> Work:
    """The backward pass alone: the graph of one forward pass is kept."""
    for leaf in side.leaves:
        leaf.requires_grad_()
    out = side.call()
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, side.leaves, grad, retain_graph=True)


def attention_batches(device: str) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """What is measured: cells of real lengths, and equal ones of 2k, 8k and 19k tokens."""
    if device == "cpu":
        return [("real lengths", real_lengths(8) + 2)]
    fixed = [(f"{length:,} tokens a cell", np.full(cells, length)) for length, cells in FIXED]
    return [("real lengths", real_lengths(64) + 2), *fixed]


FIXED = ((2048, 32), (8192, 8), (19_266, 3))


def _token_mask(cu_seqlens: Tensor, longest: int) -> Tensor:
    """True where a padded batch holds a token, (C, L)."""
    return torch.arange(longest, device=cu_seqlens.device) < cu_seqlens.diff().long()[:, None]


def _pad(packed_NHK: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """The same tokens as (C, H, L, K), zeros behind each cell's last."""
    out_CLHK = packed_NHK.new_zeros(len(cu_seqlens) - 1, longest, *packed_NHK.shape[1:])
    out_CLHK[_token_mask(cu_seqlens, longest)] = packed_NHK
    return out_CLHK.transpose(1, 2).contiguous()
