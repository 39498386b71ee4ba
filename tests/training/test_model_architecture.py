"""The packed model against a slow, padded, dense float64 twin written from the formulas in official names."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cellfoundry_data.batch import CellBatch
from cellfoundry_kernels import MaskedCells, mask_cells
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import LoadedModel
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.decoder import draw_projection
from cellfoundry_model.official import import_official
from cellfoundry_model.presets import PRESETS
from cellfoundry_model.tokens import tokenize

TOLERANCE = 1e-4


class DenseTwin:
    """The architecture on dense rows: genes, T, S; zeros included, cells padded to the longest."""

    def __init__(self, part: dict[str, Any]) -> None:
        self.w = {name.removeprefix("model."): t.double() for name, t in part["state_dict"].items()}
        self.sizes = part["config"]["model_config"]["mae_autobin"]
        self.alpha = part["config"]["dataset_config"]["rnaseq"]["bin_alpha"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def value(self, v: Tensor) -> Tensor:
        hidden = self.linear("token_emb.mlp", v[..., None])
        hidden = torch.where(hidden > 0, hidden, 0.1 * hidden)
        mixed = (self.linear("token_emb.mlp2", hidden) + self.alpha * hidden).softmax(-1)
        out = mixed @ self.w["token_emb.emb.weight"]
        out[v == self.sizes["mask_token_id"]] = self.w["token_emb.emb_mask.weight"][0]
        out[v == self.sizes["pad_token_id"]] = self.w["token_emb.emb_pad.weight"][0]
        return out

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Padded encoder output, its positions, and which entries are padding."""
        taken = x > 0
        taken[:, -2:] = True
        taken &= x != self.sizes["mask_token_id"]
        length = int(taken.sum(1).max())
        values = torch.full((len(x), length), float(self.sizes["pad_token_id"]), dtype=x.dtype)
        positions = torch.full((len(x), length), x.shape[1])
        for cell, row in enumerate(taken):
            n = int(row.sum())
            values[cell, :n], positions[cell, :n] = x[cell, row], row.nonzero()[:, 0]
        padding = positions == x.shape[1]
        h = self.value(values) + self.w["pos_emb.weight"][positions]
        heads = self.sizes["encoder"]["heads"]
        for layer in range(self.sizes["encoder"]["depth"]):
            stem = f"encoder.transformer_encoder.{layer}."
            qkv = h @ self.w[f"{stem}self_attn.in_proj_weight"].T + self.w[f"{stem}self_attn.in_proj_bias"]
            q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
            logits = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
            weights = logits.masked_fill(padding[:, None, None, :], -torch.inf).softmax(-1)
            attended = (weights @ v).transpose(1, 2).flatten(2)
            h = self.norm(f"{stem}norm1", h + self.linear(f"{stem}self_attn.out_proj", attended))
            inner = self.linear(f"{stem}linear1", h).clamp(min=0)
            h = self.norm(f"{stem}norm2", h + self.linear(f"{stem}linear2", inner))
        return self.norm("encoder.norm", h), positions, padding

    def pooled(self, x: Tensor, pool: str) -> Tensor:
        h, _, padding = self.encode(x)
        rows = []
        for cell in range(len(x)):
            own = h[cell, ~padding[cell]]
            genes, t, s = own[:-2], own[-2], own[-1]
            rows.append(torch.cat([s, t, genes.amax(0), genes.mean(0)]) if pool == "all" else own.amax(0))
        return torch.stack(rows)

    def decode(self, x: Tensor) -> Tensor:
        h, positions, padding = self.encode(x)
        z = self.value(x)
        for cell in range(len(x)):
            z[cell, positions[cell, ~padding[cell]]] = h[cell, ~padding[cell]]
        z = self.linear("decoder_embed", z + self.w["pos_emb.weight"][: x.shape[1]])
        heads = self.sizes["decoder"]["heads"]
        for layer in range(self.sizes["decoder"]["depth"]):
            stem = f"decoder.performer.net.layers.{layer}."
            normed = self.norm(f"{stem}0.norm", z)
            q, k, v = (
                self.linear(f"{stem}0.fn.to_{name}", normed).unflatten(2, (heads, -1)).transpose(1, 2)
                for name in "qkv"
            )
            projection = self.w[f"{stem}0.fn.fast_attention.projection_matrix"]
            q, k = self.feature_map(q, projection, (-1,)), self.feature_map(k, projection, (1, 2, 3))
            attended = (q @ (k.transpose(2, 3) @ v)) / (q @ k.sum(2)[..., None])
            z = z + self.linear(f"{stem}0.fn.to_out", attended.transpose(1, 2).flatten(2))
            inner = F.gelu(self.linear(f"{stem}1.fn.fn.w1", self.norm(f"{stem}1.norm", z)))
            z = z + self.linear(f"{stem}1.fn.fn.w2", inner)
        return self.norm("norm", self.norm("decoder.norm", z))

    @staticmethod
    def feature_map(z: Tensor, projection: Tensor, over: tuple[int, ...]) -> Tensor:
        scale = z.shape[-1] ** -0.25
        dash = scale * (z @ projection.T)
        half_norm = 0.5 * scale**2 * z.square().sum(-1, keepdim=True)
        return len(projection) ** -0.5 * (torch.exp(dash - half_norm - dash.amax(over, keepdim=True)) + 1e-4)

    def expression(self, decoded: Tensor) -> Tensor:
        return self.linear("to_final", decoded)[..., 0]


def dense_rows(batch: CellBatch, genes: int, target: float) -> Tensor:
    """The official script's rows for raw counts and target tN, one cell at a time."""
    rows = []
    for cell in range(len(batch)):
        part = batch.select(np.array([cell]))
        x = np.zeros(genes)
        x[part.gene_ids] = part.counts
        total = x.sum()
        rows.append([*np.log1p(x / total * 1e4), target, np.log10(total)])
    return torch.tensor(np.array(rows))


@pytest.fixture
def loaded(official_file: Path, model_genes: list[str], tmp_path: Path) -> LoadedModel:
    return import_official(official_file, tmp_path / "model", vocab_genes=model_genes, part="gene")


@pytest.fixture
def twin(official_parts: dict[str, dict[str, Any]]) -> DenseTwin:
    return DenseTwin(official_parts["gene"])


def arguments(batch: CellBatch, genes: int) -> tuple[Tensor, Tensor, Tensor, int]:
    tokens = tokenize(batch, n_genes=genes, target="t4")
    tensors = (torch.from_numpy(x) for x in (tokens.value_N, tokens.position_N, tokens.cu_seqlens))
    return (*tensors, tokens.max_seqlen)


@pytest.mark.parametrize("pool", ["all", "max"])
def test_cell_embedding_equals_the_dense_twin(
    loaded: LoadedModel, twin: DenseTwin, random_cells: Callable[..., CellBatch], pool: str
) -> None:
    batch, genes = random_cells(6), loaded.config.n_genes
    ours = loaded.model.cell_embedding(*arguments(batch, genes), pool=pool)
    expected = twin.pooled(dense_rows(batch, genes, 4.0), pool)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=TOLERANCE)


def test_gene_embedding_and_expression_equal_the_dense_twin(
    loaded: LoadedModel, twin: DenseTwin, random_cells: Callable[..., CellBatch]
) -> None:
    batch, genes = random_cells(5), loaded.config.n_genes
    value, position, cu_seqlens, longest = arguments(batch, genes)
    # The official key maximum spans the batch; per cell means one cell a call in the twin.
    expected = torch.cat([twin.decode(row[None]) for row in dense_rows(batch, genes, 4.0)])
    ours = loaded.model.gene_embedding(value, position, cu_seqlens, longest)
    torch.testing.assert_close(ours.double(), expected[:, :genes], rtol=0, atol=TOLERANCE)
    decoded = loaded.model.decode(
        loaded.model.encode_tokens(value, position, cu_seqlens, longest), position, cu_seqlens
    )
    torch.testing.assert_close(decoded.double(), expected, rtol=0, atol=TOLERANCE)
    expression = loaded.model.expression(decoded)
    assert expression.shape == (5, genes)
    torch.testing.assert_close(
        expression.double(), twin.expression(expected[:, :genes]), rtol=0, atol=TOLERANCE
    )


def masked_cells(batch: CellBatch, genes: int, **settings: float) -> MaskedCells:
    return mask_cells(
        torch.from_numpy(batch.indptr),
        torch.from_numpy(batch.gene_ids),
        torch.from_numpy(batch.counts),
        torch.from_numpy(batch.row_ids),
        n_genes=genes,
        seed=1,
        step=3,
        **settings,
    )


def test_masked_forward_equals_the_dense_twin_at_the_chosen_positions(
    loaded: LoadedModel, twin: DenseTwin, random_cells: Callable[..., CellBatch]
) -> None:
    """Masked, random and kept positions, zeros among them, in cells with different numbers of each."""
    batch, genes = random_cells(6, seed=4), loaded.config.n_genes
    masked = masked_cells(
        batch, genes, value_mask_prob=0.5, zero_mask_prob=0.4, replace_prob=0.5, random_prob=0.25
    )
    x = torch.zeros(6, genes + 2, dtype=torch.float64)
    for cell in range(6):
        own = slice(int(masked.cu_seqlens[cell]), int(masked.cu_seqlens[cell + 1]))
        x[cell, masked.position_N[own]] = masked.value_N[own].double()
    x[masked.mask_cell_index_X, masked.mask_position_X] = masked.mask_value_X.double()
    decoded = torch.cat([twin.decode(row[None]) for row in x])
    expected = twin.expression(decoded)[masked.mask_cell_index_X, masked.mask_position_X]
    kinds = [masked.mask_value_X == 102, masked.mask_value_X == 0, (masked.mask_value_X % 102) > 0]
    assert all(kind.any() for kind in kinds)
    torch.testing.assert_close(loaded.model(masked).double(), expected, rtol=0, atol=TOLERANCE)


def test_masked_forward_equals_the_full_decoder(
    loaded: LoadedModel, random_cells: Callable[..., CellBatch]
) -> None:
    """Computing the last layer at the chosen positions only changes neither predictions nor gradients."""
    model, masked = loaded.model, masked_cells(random_cells(4), loaded.config.n_genes)

    def gradients(prediction: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        (prediction - masked.target_X).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    encoded = model.encode_tokens(masked.value_N, masked.position_N, masked.cu_seqlens, masked.max_seqlen)
    chosen = (masked.mask_cell_index_X, masked.mask_position_X)
    decoded = model.decode(encoded, masked.position_N, masked.cu_seqlens, *chosen, masked.mask_value_X)
    full, narrow = model.expression(decoded)[chosen], model(masked)
    torch.testing.assert_close(narrow, full, rtol=0, atol=1e-5)
    full_gradients, narrow_gradients = gradients(full), gradients(narrow)
    assert full_gradients.keys() == narrow_gradients.keys()
    for name, gradient in full_gradients.items():
        torch.testing.assert_close(narrow_gradients[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_every_parameter_but_the_padding_vector_learns(random_cells: Callable[..., CellBatch]) -> None:
    torch.manual_seed(0)
    config = ModelConfig.from_dict(
        PRESETS["tiny"].to_dict() | {"n_genes": 40, "encoder_width": 8, "encoder_ffn_width": 32}
    )
    model = CellModel(config)
    masked = masked_cells(random_cells(4), 40)
    (model(masked) - masked.target_X).square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == ["value_embedding.pad_1D"]


def test_a_batch_with_nothing_chosen_gives_no_predictions(
    loaded: LoadedModel, random_cells: Callable[..., CellBatch]
) -> None:
    masked = masked_cells(random_cells(2), loaded.config.n_genes, value_mask_prob=0.0, zero_mask_prob=0.0)
    assert loaded.model(masked).shape == (0,)


def test_projection_rows_are_orthogonal_in_blocks_and_gaussian_in_length() -> None:
    torch.manual_seed(0)
    projection = draw_projection(266, 64)
    assert projection.shape == (266, 64)
    block = F.normalize(projection[:64], dim=1)
    torch.testing.assert_close(block @ block.T, torch.eye(64), rtol=0, atol=1e-5)
    # The square of a chi(64) length has mean 64 and variance 128.
    squares = projection.square().sum(1)
    assert abs(float(squares.mean()) - 64) < 4 * math.sqrt(128 / 266)
    assert 0.5 * 128 < float(squares.var()) < 2 * 128


def test_published_preset_has_the_published_size() -> None:
    with torch.device("meta"):
        model = CellModel(PRESETS["100m"])
    parameters = sum(p.numel() for p in model.parameters())
    assert 118e6 < parameters < 120e6
    assert model.decoder.layers[0].projection_MK.shape == (266, 64)
