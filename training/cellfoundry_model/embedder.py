"""Embedder: any batch of cells to vectors, in micro-batches of bounded memory.

Cells are grouped by length, so a micro-batch holds about ``max_tokens`` encoder tokens whoever was in the
caller's batch; a cell's result does not depend on its company.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.checkpoint import LoadedModel, load_model
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.cpu_inference import packed_for_cpu
from cellfoundry_model.errors import ModelError
from cellfoundry_model.packed_linear import can_pack
from cellfoundry_model.tokens import InputType, PreNormalized, Tokens, tokenize

Output = Literal["cell", "gene", "expression"]
Pool = Literal["all", "max"]
Precision = Literal["fp32", "bf16"]

# What the decoder may hold for one micro-batch; at least one cell always runs.
DECODER_BYTES = 3 * 2**29


class Embedder:
    """Runs a model over batches of cells, with the weights that it has then: a CPU's layout of them is made anew where
    they were trained meanwhile.

    Args:
        model: model directory, or a model already loaded.
        device: any torch device string.
        precision: "fp32", or "bf16" for matrix products in bfloat16 (results are float32 all the same).
        max_tokens: encoder tokens of a micro-batch; a longer cell runs alone.

    Raises:
        ModelError: a broken model directory, an unusable device or an unknown precision.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        *,
        device: str = "cpu",
        precision: Precision = "fp32",
        max_tokens: int = 16_384,
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise ModelError(f"precision is {precision!r}; use fp32 or bf16.")
        if max_tokens < 1:
            raise ModelError(f"max_tokens is {max_tokens}; give a positive number of tokens.")
        self.device = _usable_device(device)
        self.loaded = model if isinstance(model, LoadedModel) else load_model(model)
        self.precision = precision
        self.max_tokens = max_tokens
        self._model = self.loaded.model.to(self.device).eval()
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._packed = self.device.type == "cpu" and can_pack(self._dtype)
        self._packed_weights: list[tuple[int, int]] | None = None

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model."""
        return self.loaded.config

    @property
    def vocab_genes(self) -> tuple[str, ...]:
        """Gene names in position order."""
        return self.loaded.vocab_genes

    def width(self, output: Output = "cell", pool: Pool = "all") -> int:
        """Length of the last axis of ``encode``'s result."""
        if pool not in ("all", "max"):
            raise ModelError(f"pool is {pool!r}; use all or max.")
        widths = {
            "cell": self.config.encoder_width * (4 if pool == "all" else 1),
            "gene": self.config.decoder_width,
            "expression": self.config.n_genes,
        }
        if output not in widths:
            raise ModelError(f"output is {output!r}; use cell, gene or expression.")
        return widths[output]

    @torch.inference_mode()
    def encode(
        self,
        batch: CellBatch,
        *,
        output: Output = "cell",
        pool: Pool = "all",
        target: str = "t4",
        input_type: InputType = "singlecell",
        pre_normalized: PreNormalized = "F",
        totals: npt.ArrayLike | None = None,
        bulk_median: float | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embed cells, in the caller's order; a cell without positive values gives NaN.

        ``output`` "cell" gives (C, width), "gene" (C, genes, decoder width), "expression" (C, genes) in
        log1p of counts per 10,000. ``pool`` concerns "cell" only. The other arguments and their errors are
        those of ``tokens.tokenize``.
        """
        self._pack_anew()
        width = self.width(output, pool)
        shape = (len(batch), self.config.n_genes, width) if output == "gene" else (len(batch), width)
        result = np.full(shape, np.nan, dtype=np.float32)
        tokens = tokenize(
            batch,
            n_genes=self.config.n_genes,
            target=target,
            input_type=input_type,
            pre_normalized=pre_normalized,
            totals=totals,
            bulk_median=bulk_median,
        )
        max_cells = len(batch)
        if output != "cell":
            max_cells = max(1, DECODER_BYTES // decoder_cell_bytes(self.config))
        for cells in micro_batches(np.diff(tokens.cu_seqlens), self.max_tokens, max_cells):
            result[cells] = self._run(tokens.select(cells), output, pool).float().cpu().numpy()
        return result

    def _pack_anew(self) -> None:
        """Lay the layers' weights out for this CPU, unless that was done since they last changed."""
        if not self._packed:
            return
        weights = [
            (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
            for weight in self.loaded.model.parameters()
        ]
        if weights != self._packed_weights:
            self._model = packed_for_cpu(self.loaded.model, self._dtype)
            self._packed_weights = weights

    def _run(self, tokens: Tokens, output: Output, pool: Pool) -> Tensor:
        value_N = torch.from_numpy(tokens.value_N).to(self.device)
        position_N = torch.from_numpy(tokens.position_N).to(self.device)
        cu_seqlens = torch.from_numpy(tokens.cu_seqlens).to(self.device)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bf16" and not self._packed
        ):
            if output == "cell":
                return self._model.cell_embedding(value_N, position_N, cu_seqlens, tokens.max_seqlen, pool)
            encoder_ND = self._model.encode_tokens(value_N, position_N, cu_seqlens, tokens.max_seqlen)
            decoded_CPW = self._model.decode(encoder_ND, position_N, cu_seqlens)
            if output == "gene":
                return decoded_CPW[:, : self.config.n_genes]
            return self._model.expression(decoded_CPW)


def decoder_cell_bytes(config: ModelConfig) -> int:
    """About what a decoder layer holds for one cell in float32: streams, projections, features, FFN."""
    inner = config.decoder_heads * config.decoder_head_dim
    features = config.decoder_heads * config.favor_features
    channels = 4 * config.decoder_width + 4 * inner + 4 * features + 2 * config.decoder_ffn_width
    return 4 * config.n_positions * channels


def micro_batches(
    lengths: npt.NDArray[np.int32], max_tokens: int, max_cells: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Groups of cells with gene tokens, ascending in length, within both limits or of one cell."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 2]
    first, tokens = 0, 0
    for last, length in enumerate(lengths[order].tolist()):
        if last > first and (tokens + length > max_tokens or last - first == max_cells):
            yield order[first:last]
            first, tokens = last, 0
        tokens += length
    if len(order):
        yield order[first:]


def _usable_device(device: str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {device!r} cannot be used here ({reason}); use cpu.") from error
