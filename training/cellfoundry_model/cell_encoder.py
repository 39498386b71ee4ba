"""The part of a model that turns a cell into a vector, as a module for any training loop.

Legend: N tokens over all cells, C cells, D encoder width.
"""

from __future__ import annotations

from torch import Tensor, nn

from cellfoundry_kernels import pool_cells
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.errors import ModelError
from cellfoundry_model.token_batch import TokenBatch


class CellEncoder(nn.Module):
    """Packed tokens -> one vector a cell, through a model's own embeddings and encoder layers.

    The modules are the model's, not copies: training this trains the model. Its decoder is left out, so
    every parameter here can be trained by a loss on the vectors (the vectors of the mask and pad tokens alone
    get a gradient of zero, since no cell holds these tokens).

    Args:
        model: lends its modules.
        pool: "all" (S, T, maximum and mean over genes) or "max" (maximum over all tokens).

    Attributes:
        width: length of a cell's vector, 4 D or D.

    Raises:
        ModelError: an unknown pool.
    """

    def __init__(self, model: CellModel, pool: str = "all") -> None:
        super().__init__()
        if pool not in ("all", "max"):
            raise ModelError(f"pool is {pool!r}; use all or max.")
        self.pool = pool
        self.width = model.config.encoder_width * (4 if pool == "all" else 1)
        self.value_embedding = model.value_embedding
        self.position_embedding = model.position_embedding
        self.encoder = model.encoder

    def forward(self, tokens: TokenBatch) -> Tensor:
        """Vectors (C, width); a cell without gene tokens gives NaN, so leave such cells out of a loss."""
        x_ND = self.value_embedding(tokens.value_N, self.position_embedding.weight, tokens.position_N)
        x_ND = self.encoder(x_ND, tokens.cu_seqlens, tokens.max_seqlen)
        return pool_cells(x_ND, tokens.cu_seqlens, self.pool)
