"""The cell graph over packed tokens: the cells of a batch one after another, without padding, for TensorRT.

Its attention is written as if all tokens were of one cell. Whoever runs the graph has to keep it within cells, which
``packed_attention.py`` does with TensorRT's packed form: ONNX has no attention that takes cells' bounds.

Legend: N tokens of all cells, B cells, D encoder width, K blocks of R tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cellfoundry_model.architecture import CellModel
from cellfoundry_serving.export.graph import EncoderGraph


class PackedCellGraph(EncoderGraph):
    """value (N,) float32, position (N,) int64, cu_seqlens (B + 1,) int32 -> pool "all" (B, 4 D) float32."""

    def __init__(self, model: CellModel, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(model, dtype)
        self.n_genes = model.config.n_genes

    def forward(self, value_N: Tensor, position_N: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Cell ``i`` owns tokens ``cu_seqlens[i]:cu_seqlens[i + 1]``: T, S, then its genes, at least one."""
        x_ND = self.encode(value_N[None], position_N[None], None)[0]
        bound_B = cu_seqlens.long()
        first_B, end_B = bound_B[:-1], bound_B[1:]
        gene_max_BD, gene_mean_BD = pool_genes(x_ND, first_B + 2, end_B, self.n_genes)
        return torch.cat([x_ND[first_B + 1], x_ND[first_B], gene_max_BD, gene_mean_BD], dim=1)


def pool_genes(x_ND: Tensor, first_B: Tensor, end_B: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Maximum and mean, both (B, D), of rows ``first_B[i]:end_B[i]`` of each cell, at most ``longest`` rows.

    All rows are reduced in blocks of R, whatever cell they are of; a cell then takes the blocks that lie within it, and
    the rows before and after these. R is the root of ``longest``, so a cell has at most R of each. The shapes depend on
    those of the inputs alone: padding to the longest cell would need one that depends on values, and scattering with
    a reduction an operation that TensorRT lacks without plugins. A chain of 15 gathers, each over twice the rows of the
    one before, grew to a plan of 970 MB in TensorRT's compiler, ten times this one.
    """
    side = math.isqrt(longest) + 1
    place_R = torch.arange(side, device=x_ND.device)
    last = x_ND.shape[0] - 1
    first_K1 = torch.arange(x_ND.shape[0] // side + 1, device=x_ND.device)[:, None] * side
    block_KRD = x_ND[(first_K1 + place_R).clamp(max=last)]
    head_end_B = torch.minimum((first_B + side - 1) // side * side, end_B)
    tail_B = torch.maximum(end_B // side * side, head_end_B)

    def rows(source_MD: Tensor, from_B: Tensor, to_B: Tensor, filler: float) -> Tensor:
        """Rows ``from_B[i]:to_B[i]`` of each cell, (B, R, D), and the filler where there are none."""
        place_BR = from_B[:, None] + place_R
        is_beyond_BR1 = (place_BR >= to_B[:, None])[:, :, None]
        return source_MD[place_BR.clamp(max=source_MD.shape[0] - 1)].masked_fill(is_beyond_BR1, filler)

    def parts(block_KD: Tensor, filler: float) -> Tensor:
        """What remains of each cell: tokens before the blocks, blocks, tokens after them, (B, 3 R, D)."""
        return torch.cat(
            [
                rows(x_ND, first_B, head_end_B, filler),
                rows(block_KD, head_end_B // side, tail_B // side, filler),
                rows(x_ND, tail_B, end_B, filler),
            ],
            dim=1,
        )

    max_BD = parts(block_KRD.amax(1), -torch.inf).amax(1)
    mean_BD = parts(block_KRD.sum(1), 0.0).sum(1) / (end_B - first_B)[:, None]
    return max_BD, mean_BD
