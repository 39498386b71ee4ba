"""The model: value and position embeddings, packed encoder, linear-attention decoder over every gene.

The encoder sees expressed genes only. The decoder sees all positions, but a gene that is neither expressed
nor masked enters it as the same vector in every cell: that table is computed once a call, and only encoder
tokens and masked positions are written over it. So nothing of size cells x positions x encoder width exists.

Legend: N encoder tokens over all cells, C cells, D encoder width, W decoder width,
P positions (G genes, T, S), X chosen (masked) positions over all cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cellfoundry_kernels import MaskedCells, pool_cells, scatter_into_zero_table
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.decoder import Decoder
from cellfoundry_model.encoder import Encoder
from cellfoundry_model.value_embedding import EMBEDDING_STD, ValueEmbedding


class CellModel(nn.Module):
    """xTrimoGene / scFoundation architecture (Hao et al. 2024) over packed tokens.

    Tokens of a cell are its expressed genes in ascending position, then T (position G), then S (G + 1).
    ``value_N`` is float32, ``position_N`` int64, ``cu_seqlens`` int32 (cells + 1,).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.value_embedding = ValueEmbedding(config)
        # One row more than there are positions: the last one belongs to padding, for users of padded batches.
        self.position_embedding = nn.Embedding(config.n_positions + 1, config.encoder_width)
        nn.init.normal_(self.position_embedding.weight, std=EMBEDDING_STD)
        self.encoder = Encoder(config)
        self.decoder_embed = nn.Linear(config.encoder_width, config.decoder_width)
        self.decoder = Decoder(config)
        self.norm = nn.LayerNorm(config.decoder_width, eps=1e-5)
        self.to_expression = nn.Linear(config.decoder_width, 1)

    def checkpoint_activations(self) -> None:
        """From now on keep only the layers' inputs for the backward pass, which computes each layer again: same
        gradients, about a third more work, and a fraction of the memory.
        """
        self.encoder.checkpointing = self.decoder.checkpointing = True

    def encode_tokens(
        self, value_N: Tensor, position_N: Tensor, cu_seqlens: Tensor, max_seqlen: int
    ) -> Tensor:
        """Encoder output of every token after the encoder's last LayerNorm, (N, D)."""
        x_ND = self.value_embedding(value_N, self.position_embedding.weight, position_N)
        return self.encoder(x_ND, cu_seqlens, max_seqlen)

    def cell_embedding(
        self, value_N: Tensor, position_N: Tensor, cu_seqlens: Tensor, max_seqlen: int, pool: str = "all"
    ) -> Tensor:
        """One vector a cell; a cell without gene tokens gives NaN.

        Pool "all" joins S, T, the maximum and the mean over gene tokens, (C, 4 D); "max" is the maximum over
        all tokens, (C, D).
        """
        return pool_cells(self.encode_tokens(value_N, position_N, cu_seqlens, max_seqlen), cu_seqlens, pool)

    def decode(
        self,
        encoder_ND: Tensor,
        position_N: Tensor,
        cu_seqlens: Tensor,
        mask_cell_index: Tensor | None = None,
        mask_position: Tensor | None = None,
        mask_value: Tensor | None = None,
    ) -> Tensor:
        """Decoder output of every position after the decoder's and the model's LayerNorm, (C, P, W).

        ``mask_*`` (X,) are the chosen positions and the values they show: the mask token, zero, or a positive
        value, which is an encoder token and keeps the encoder's output.
        """
        x_CPW = self._decoder_input(
            encoder_ND, position_N, cu_seqlens, mask_cell_index, mask_position, mask_value
        )
        return self.norm(self.decoder(x_CPW))

    def gene_embedding(
        self, value_N: Tensor, position_N: Tensor, cu_seqlens: Tensor, max_seqlen: int
    ) -> Tensor:
        """Context embedding of every gene in every cell, (C, G, W)."""
        encoder_ND = self.encode_tokens(value_N, position_N, cu_seqlens, max_seqlen)
        return self.decode(encoder_ND, position_N, cu_seqlens)[:, : self.config.n_genes]

    def expression(self, decoded_CPW: Tensor) -> Tensor:
        """Predicted expression (log1p of counts per 10,000) of every gene from ``decode``'s rows, (C, G)."""
        return self.to_expression(decoded_CPW[:, : self.config.n_genes]).squeeze(2)

    def forward(self, masked: MaskedCells) -> Tensor:
        """Predicted expression at the chosen positions of masked cells, (X,)."""
        encoder_ND = self.encode_tokens(
            masked.value_N, masked.position_N, masked.cu_seqlens, masked.max_seqlen
        )
        x_CPW = self._decoder_input(
            encoder_ND,
            masked.position_N,
            masked.cu_seqlens,
            masked.mask_cell_index_X,
            masked.mask_position_X,
            masked.mask_value_X,
        )
        asked_CQ, is_asked_CQ = _pad_by_cell(
            masked.mask_position_X, masked.mask_cell_index_X, cells=x_CPW.shape[0]
        )
        decoded_CQW = self.norm(self.decoder(x_CPW, asked_CQ))
        return self.to_expression(decoded_CQW[is_asked_CQ]).squeeze(1)

    def _decoder_input(
        self,
        encoder_ND: Tensor,
        position_N: Tensor,
        cu_seqlens: Tensor,
        mask_cell_index: Tensor | None,
        mask_position: Tensor | None,
        mask_value: Tensor | None,
    ) -> Tensor:
        cells = cu_seqlens.numel() - 1
        cell_index_N = cell_of_token(cu_seqlens, position_N.numel())
        x_NW = self._enter_decoder(encoder_ND, position_N)
        if mask_cell_index is not None and mask_position is not None and mask_value is not None:
            # A chosen position with a positive value is an encoder token, one with zero is in the table already.
            hidden_X = (mask_value == self.config.mask_token_id).nonzero()[:, 0]
            mask_position = mask_position[hidden_X]
            mask_1D = self.value_embedding(mask_value.new_full((1,), self.config.mask_token_id))
            x_NW = torch.cat([x_NW, self._enter_decoder(mask_1D, mask_position)])
            cell_index_N = torch.cat([cell_index_N, mask_cell_index[hidden_X]])
            position_N = torch.cat([position_N, mask_position])
        return scatter_into_zero_table(self._zero_table(), x_NW, cell_index_N, position_N, cells)

    def _enter_decoder(self, x_ND: Tensor, position_N: Tensor) -> Tensor:
        return self.decoder_embed(x_ND + self.position_embedding(position_N))

    def _zero_table(self) -> Tensor:
        """Decoder input of a position whose value is zero, (P, W); the same in every cell."""
        position_P = torch.arange(self.config.n_positions, device=self.position_embedding.weight.device)
        zero_1D = self.value_embedding(position_P.new_zeros(1, dtype=torch.float32))
        return self._enter_decoder(zero_1D, position_P)


def cell_of_token(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Index of the cell each packed token belongs to, int64 (N,)."""
    cells = torch.arange(cu_seqlens.numel() - 1, device=cu_seqlens.device)
    return cells.repeat_interleave(cu_seqlens.diff().long(), output_size=tokens)


def _pad_by_cell(position_X: Tensor, cell_index_X: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Positions, ordered by cell, as one row a cell (C, Q), and which entries are theirs (the rest is 0)."""
    # Not bincount, whose length torch.compile takes for unknown.
    asked_C = cell_index_X.new_zeros(cells).index_add_(0, cell_index_X, torch.ones_like(cell_index_X))
    longest = int(asked_C.max()) if cells else 0
    is_asked_CQ = torch.arange(longest, device=position_X.device) < asked_C[:, None]
    padded_CQ = torch.zeros_like(is_asked_CQ, dtype=position_X.dtype)
    padded_CQ[is_asked_CQ] = position_X
    return padded_CQ, is_asked_CQ
