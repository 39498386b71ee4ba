"""The same model as people run it without packing: padded batches, torch's SDPA, linear attention in plain torch.

Legend: N tokens over all cells, C cells, L longest cell, D width.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cellfoundry_bench.one_cell_loop import torch_layer
from cellfoundry_kernels import MaskedCells
from cellfoundry_kernels.dispatch import VARIABLE
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.decoder_context import DecoderContext
from cellfoundry_model.encoder import Encoder, EncoderLayer


class PaddedEncoder(nn.Module):
    """torch's own transformer layers, whose attention is ``scaled_dot_product_attention`` with a padding mask."""

    def __init__(self, ours: Encoder) -> None:
        super().__init__()
        layers = [torch_layer(layer).train() for layer in ours.layers if isinstance(layer, EncoderLayer)]
        self.layers = nn.ModuleList(layers)
        self.norm = copy.deepcopy(ours.norm)

    def forward(self, x_ND: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Pad packed tokens (N, D) to the longest cell, run, and pack again."""
        is_token_CL = torch.arange(max_seqlen, device=x_ND.device) < cu_seqlens.diff()[:, None]
        x_CLD = x_ND.new_zeros(*is_token_CL.shape, x_ND.shape[1])
        x_CLD[is_token_CL] = x_ND
        for layer in self.layers:
            x_CLD = layer(x_CLD, src_key_padding_mask=~is_token_CL)
        packed_ND: Tensor = self.norm(x_CLD[is_token_CL])
        return packed_ND


class PaddedModel(nn.Module):
    """Predictions of a copy of ``model`` with a padded encoder and no kernel of ours."""

    def __init__(self, model: CellModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.encoder = PaddedEncoder(model.encoder)  # type: ignore[assignment]

    def forward(self, masked: MaskedCells, context: DecoderContext | None = None) -> Tensor:
        """Predicted expression at the chosen positions, (X,)."""
        with _torch_ops():
            prediction_X: Tensor = self.model(masked, context)
        return prediction_X


@contextmanager
def _torch_ops() -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "torch"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
