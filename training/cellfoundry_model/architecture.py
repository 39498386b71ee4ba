"""The model: value and position embeddings, packed encoder, linear-attention decoder over every gene.

The encoder sees expressed genes only. The decoder sees all positions, but a gene that is neither expressed
nor masked enters it as the same vector in every cell: that table is computed once a call, and only encoder
tokens and masked positions are written over it. So nothing of size cells x positions x encoder width exists. In
training the decoder may see a sample of those zeros alone (``decoder_context``).

Legend: N encoder tokens over all cells, C cells, D encoder width, W decoder width,
P positions (G genes, T, S), X chosen (masked) positions over all cells, R rows of the decoder over all cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cellfoundry_kernels import MaskedCells, pool_cells, scatter_into_zero_table
from cellfoundry_model.cell_rows import CellRows, cell_of_token
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.decoder import Asked, Decoder
from cellfoundry_model.decoder_context import DecoderContext
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
        rows = CellRows((x_CPW.shape[0], x_CPW.shape[1]))
        return rows.spread(self.norm(self.decoder(x_CPW.flatten(0, 1), rows)))

    def gene_embedding(
        self, value_N: Tensor, position_N: Tensor, cu_seqlens: Tensor, max_seqlen: int
    ) -> Tensor:
        """Context embedding of every gene in every cell, (C, G, W)."""
        encoder_ND = self.encode_tokens(value_N, position_N, cu_seqlens, max_seqlen)
        return self.decode(encoder_ND, position_N, cu_seqlens)[:, : self.config.n_genes]

    def expression(self, decoded_CPW: Tensor) -> Tensor:
        """Predicted expression (log1p of counts per 10,000) of every gene from ``decode``'s rows, (C, G)."""
        return self.to_expression(decoded_CPW[:, : self.config.n_genes]).squeeze(2)

    def forward(self, masked: MaskedCells, context: DecoderContext | None = None) -> Tensor:
        """Predicted expression at the chosen positions of masked cells, (X,).

        Exact without a ``context``. With one, for training, the decoder computes encoder tokens, chosen positions and
        the sampled zeros only, and those count for all zeros in its attention.
        """
        encoder_ND = self.encode_tokens(
            masked.value_N, masked.position_N, masked.cu_seqlens, masked.max_seqlen
        )
        if context is not None:
            x_RW, rows, row_X = self._sampled_input(encoder_ND, masked, context)
        else:
            x_CPW = self._decoder_input(
                encoder_ND,
                masked.position_N,
                masked.cu_seqlens,
                masked.mask_cell_index_X,
                masked.mask_position_X,
                masked.mask_value_X,
            )
            x_RW, rows = x_CPW.flatten(0, 1), CellRows((x_CPW.shape[0], x_CPW.shape[1]))
            row_X = masked.mask_cell_index_X * self.config.n_positions + masked.mask_position_X
        asked = Asked(row_X, CellRows.ragged(masked.mask_cell_index_X, rows.shape[0]))
        return self.to_expression(self.norm(self.decoder(x_RW, rows, asked))).squeeze(1)

    def _sampled_input(
        self, encoder_ND: Tensor, masked: MaskedCells, context: DecoderContext
    ) -> tuple[Tensor, CellRows, Tensor]:
        """Decoder input of encoder tokens, chosen positions that are none, and sampled zeros, (R, W), in this order;
        their cells; the row of each chosen position.
        """
        cells, tokens = masked.cu_seqlens.numel() - 1, masked.position_N.numel()
        cell_N = cell_of_token(masked.cu_seqlens, tokens)
        shows_mask_X = masked.mask_value_X == self.config.mask_token_id
        # A chosen position with a positive value is an encoder token.
        is_token_X = (masked.mask_value_X > 0) & ~shows_mask_X
        own = (~is_token_X).nonzero()[:, 0]
        shown_2 = masked.mask_value_X.new_tensor([self.config.mask_token_id, 0.0])
        mask_1D, zero_1D = self.value_embedding(shown_2).split(1)
        own_D = torch.where(shows_mask_X[own, None], mask_1D, zero_1D)
        x_RD = torch.cat([encoder_ND, own_D, zero_1D.expand(len(context.position_S), -1)])
        position_R = torch.cat([masked.position_N, masked.mask_position_X[own], context.position_S])
        cell_R = torch.cat([cell_N, masked.mask_cell_index_X[own], context.cell_index_S])
        weight_R = torch.cat([context.weight_S.new_ones(tokens + len(own)), context.weight_S])

        place_N = cell_N * self.config.n_positions + masked.position_N
        place_X = masked.mask_cell_index_X * self.config.n_positions + masked.mask_position_X
        row_X = torch.where(
            is_token_X, torch.searchsorted(place_N, place_X), tokens - 1 + (~is_token_X).cumsum(0)
        )
        return self._enter_decoder(x_RD, position_R), CellRows.ragged(cell_R, cells, weight_R), row_X

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
