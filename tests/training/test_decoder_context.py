"""The sampled decoder against the full one: what is drawn, what it estimates, and what training makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cellfoundry_data.batch import CellBatch
from cellfoundry_kernels import MaskedCells, favor_attention, mask_cells
from cellfoundry_kernels.favor.reference import FAVOR_EPSILON
from cellfoundry_kernels.varlen import cpu, reference
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.decoder_context import DecoderContext, draw_context
from cellfoundry_model.flops import forward_flops, training_flops
from cellfoundry_model.presets import PRESETS

GENES = 40
POSITIONS = GENES + 2
DRAWS = 2000
RandomCells = Callable[..., CellBatch]


def masked_cells(batch: CellBatch, genes: int = GENES, **shares: float) -> MaskedCells:
    columns = (batch.indptr, batch.gene_ids, batch.counts, batch.row_ids)
    return mask_cells(*map(torch.from_numpy, columns), n_genes=genes, seed=1, step=3, **shares)


def drawn(
    masked: MaskedCells, batch: CellBatch, rate: float, *, step: int = 3, genes: int = GENES
) -> DecoderContext:
    return draw_context(masked, torch.from_numpy(batch.row_ids), n_genes=genes, rate=rate, seed=1, step=step)


def is_free(masked: MaskedCells, cells: int, positions: int = POSITIONS) -> Tensor:
    """Positions that are neither encoder tokens nor chosen, (cells, positions)."""
    free_CP = torch.ones(cells, positions, dtype=torch.bool)
    cell_N = torch.arange(cells).repeat_interleave(masked.cu_seqlens.diff())
    free_CP[cell_N, masked.position_N] = False
    free_CP[masked.mask_cell_index_X, masked.mask_position_X] = False
    return free_CP


def weights(context: DecoderContext, cells: int, positions: int = POSITIONS) -> Tensor:
    """How often the sample counts each position, (cells, positions)."""
    weight_CP = torch.zeros(cells, positions, dtype=torch.float64)
    place = (context.cell_index_S, context.position_S)
    return weight_CP.index_put(place, context.weight_S.double(), accumulate=True)


@pytest.fixture(scope="module")
def model() -> CellModel:
    """Two layers of each side, in float64 so that only the order of sums is left to differ."""
    torch.manual_seed(0)
    config = replace(PRESETS["tiny"], n_genes=GENES, decoder_depth=3, decoder_heads=2)
    return CellModel(config).double()


def gradients(model: CellModel, prediction_X: Tensor) -> dict[str, Tensor]:
    """Of the mean square, by name, of the parameters that have one."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(prediction_X.square().mean(), parameters, allow_unused=True)
    return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}


@given(
    density=st.floats(0, 1),
    chosen=st.floats(0, 1),
    rate=st.floats(0, 1, exclude_min=True),
    genes=st.sampled_from([1, 40, 257]),
)
@settings(max_examples=60, deadline=None)
def test_a_sample_is_the_asked_share_of_the_free_positions(
    random_cells: RandomCells, density: float, chosen: float, rate: float, genes: int
) -> None:
    batch = random_cells(3, genes=genes, density=density)
    masked = masked_cells(batch, genes, value_mask_prob=chosen, zero_mask_prob=chosen)
    free_CP = is_free(masked, 3, genes + 2)
    context = drawn(masked, batch, rate, genes=genes)
    assert free_CP[context.cell_index_S, context.position_S].all()
    place_S = context.cell_index_S * (genes + 2) + context.position_S
    assert (place_S.diff() >= 0).all()
    for cell, free in enumerate(free_CP.sum(1).tolist()):
        own_S = context.cell_index_S == cell
        # The product is rounded, so a whole number may come out as the next one.
        assert int(np.ceil(rate * free - 1e-9)) <= int(own_S.sum()) <= int(np.ceil(rate * free + 1e-9))
        assert float(context.weight_S[own_S].sum()) == pytest.approx(free, rel=1e-6)
    if rate == 1.0:
        assert torch.equal(weights(context, 3, genes + 2), free_CP.double())


@pytest.mark.parametrize("rate", [0.1, 0.37, 0.9])
def test_every_free_position_counts_once_on_average(random_cells: RandomCells, rate: float) -> None:
    """So any sum over positions is estimated without bias; the rates make strata of broken sizes."""
    batch = random_cells(4, density=0.3)
    masked = masked_cells(batch)
    free_CP = is_free(masked, 4)
    samples = torch.stack([weights(drawn(masked, batch, rate, step=step), 4) for step in range(DRAWS)])
    mean_CP, error_CP = samples.mean(0), samples.std(0) / DRAWS**0.5
    assert (mean_CP[~free_CP] == 0).all()
    # About 100 positions: 5 standard errors are passed by chance once in 17,000 tests.
    assert ((mean_CP - free_CP.double()).abs()[free_CP] < 5 * error_CP[free_CP] + 1e-12).all()


def test_both_sums_of_the_attention_are_estimated_without_bias(random_cells: RandomCells) -> None:
    """phi(K)^T [V, 1] over all positions against the mean of its estimates, in standard errors."""
    batch = random_cells(2, density=0.3)
    masked = masked_cells(batch)
    torch.manual_seed(0)
    k_CPK, v_CPK = torch.randn(2, 2, POSITIONS, 8, dtype=torch.float64)
    projection_MK = torch.randn(16, 8, dtype=torch.float64)
    dash_CPM = 8**-0.25 * k_CPK @ projection_MK.T
    half_norm_CP1 = 0.5 * 8**-0.5 * k_CPK.square().sum(-1, keepdim=True)
    phi_CPM = (dash_CPM - half_norm_CP1 - dash_CPM.amax((1, 2), keepdim=True)).exp() + FAVOR_EPSILON
    v1_CPL = torch.nn.functional.pad(v_CPK, (0, 1), value=1.0)

    def sums(weight_CP: Tensor) -> Tensor:
        return torch.einsum("cp,cpm,cpl->cml", weight_CP, phi_CPM, v1_CPL)

    entered_CP = (~is_free(masked, 2)).double()
    estimates = torch.stack(
        [sums(entered_CP + weights(drawn(masked, batch, 0.25, step=step), 2)) for step in range(DRAWS)]
    )
    full_CML = sums(torch.ones(2, POSITIONS, dtype=torch.float64))
    error_CML = estimates.std(0) / DRAWS**0.5
    off_CML = (estimates.mean(0) - full_CML) / error_CML
    # 288 sums, which move together.
    assert off_CML.abs().max() < 5
    assert off_CML.square().mean() < 3
    # The reference's own sums, weighted: its output is their quotient.
    q_CHQK = torch.randn(2, 1, 5, 8, dtype=torch.float64)
    weight_CP = entered_CP + weights(drawn(masked, batch, 0.25), 2)
    out_CHQK = favor_attention(
        q_CHQK, k_CPK[:, None], v_CPK[:, None], projection_MK, key_weight_CP=weight_CP.float()
    )
    dash_CQM = 8**-0.25 * q_CHQK[:, 0] @ projection_MK.T
    half_norm_CQ1 = 0.5 * 8**-0.5 * q_CHQK[:, 0].square().sum(-1, keepdim=True)
    phi_CQM = (dash_CQM - half_norm_CQ1 - dash_CQM.amax(2, keepdim=True)).exp() + FAVOR_EPSILON
    expected_CQL = phi_CQM @ sums(weight_CP.float().double())
    torch.testing.assert_close(out_CHQK[:, 0], expected_CQL[..., :-1] / expected_CQL[..., -1:])


def test_a_rate_of_one_is_the_full_decoder(model: CellModel, random_cells: RandomCells) -> None:
    batch = random_cells(5, density=0.3, seed=4)
    masked = masked_cells(batch, value_mask_prob=0.5, zero_mask_prob=0.4, replace_prob=0.5, random_prob=0.25)
    full_X, sampled_X = model(masked), model(masked, drawn(masked, batch, 1.0))
    torch.testing.assert_close(sampled_X, full_X, rtol=0, atol=1e-12)
    full, sampled = gradients(model, full_X), gradients(model, sampled_X)
    assert full.keys() == sampled.keys()
    for name, gradient in full.items():
        torch.testing.assert_close(sampled[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_predictions_come_nearer_to_the_full_ones_with_the_rate(
    model: CellModel, random_cells: RandomCells
) -> None:
    batch = random_cells(6, density=0.2)
    masked = masked_cells(batch)
    with torch.no_grad():
        full_X = model(masked)

        def error(rate: float) -> float:
            draws = [model(masked, drawn(masked, batch, rate, step=step)) for step in range(20)]
            return float((torch.stack(draws) - full_X).square().mean().sqrt())

        errors = [error(rate) for rate in (0.1, 0.3, 0.6, 0.9)]
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] < errors[0] / 3


def test_a_cell_does_not_know_its_company(model: CellModel, random_cells: RandomCells) -> None:
    """Neither its sample nor its predictions: short cells are padded by long ones for attention alone."""
    batch = random_cells(6, density=0.3, seed=2)
    batch = batch.select(np.array([3, 0, 5, 1, 4, 2]))
    masked = masked_cells(batch)
    together, together_X = drawn(masked, batch, 0.3), model(masked, drawn(masked, batch, 0.3))
    assert len(set(is_free(masked, 6).sum(1).tolist())) > 2
    for cell in range(6):
        part = batch.select(np.array([cell]))
        alone = masked_cells(part)
        context = drawn(alone, part, 0.3)
        own_S, own_X = together.cell_index_S == cell, masked.mask_cell_index_X == cell
        assert torch.equal(context.position_S, together.position_S[own_S])
        assert torch.equal(context.weight_S, together.weight_S[own_S])
        torch.testing.assert_close(model(alone, context), together_X[own_X], rtol=0, atol=1e-12)


def test_another_step_or_seed_draws_another_sample(random_cells: RandomCells) -> None:
    batch = random_cells(4)
    masked = masked_cells(batch)
    first = drawn(masked, batch, 0.3)
    assert torch.equal(first.position_S, drawn(masked, batch, 0.3).position_S)
    assert not torch.equal(first.position_S, drawn(masked, batch, 0.3, step=4).position_S)
    other = draw_context(masked, torch.from_numpy(batch.row_ids), n_genes=GENES, rate=0.3, seed=2, step=3)
    assert not torch.equal(first.position_S, other.position_S)


def test_every_parameter_but_the_padding_vector_learns(model: CellModel, random_cells: RandomCells) -> None:
    batch = random_cells(4)
    masked = masked_cells(batch)
    found = gradients(model, model(masked, drawn(masked, batch, 0.3)))
    idle = [name for name, _ in model.named_parameters() if name not in found or not found[name].any()]
    assert idle == ["value_embedding.pad_1D"]


@pytest.mark.parametrize("cells", [0, 2])
def test_nothing_chosen_and_nothing_free(model: CellModel, random_cells: RandomCells, cells: int) -> None:
    batch = random_cells(2, density=1.0).select(np.arange(cells))
    masked = masked_cells(batch, value_mask_prob=0.0, zero_mask_prob=0.0)
    context = drawn(masked, batch, 0.5)
    assert len(context.position_S) == 0
    assert model(masked, context).shape == (0,)


def test_flops_are_those_of_what_is_decoded(
    random_cells: RandomCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against torch's counter, of one cell: it counts the places of attention's table, which other cells would pad."""
    # The counter does not look into a registered op.
    monkeypatch.setattr(cpu, "varlen_attention", reference.varlen_attention)
    config = replace(PRESETS["3m"], n_genes=400)
    model, batch = CellModel(config).eval(), random_cells(1, genes=400, density=0.2)
    masked = masked_cells(batch, 400)
    context = drawn(masked, batch, 0.1, genes=400)
    # The counter knows nothing of the fused attention of CPUs.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(masked, context)
    scalar = 2 * len(masked.value_N) * config.bins
    mask_and_zero = 2 * 2 * config.bins * (config.bins + config.encoder_width)
    sampled = forward_flops(config, masked, context)
    assert counter.get_total_flops() == sampled - scalar + mask_and_zero
    assert training_flops(config, masked, context) == 3 * sampled < training_flops(config, masked)
    # A context of all zeros costs what the full decoder does, but for the table that it does not share.
    everything = drawn(masked, batch, 1.0, genes=400)
    shared = len(masked.position_N) + int((masked.mask_value_X == config.mask_token_id).sum())
    table = 2 * shared * config.encoder_width * config.decoder_width
    assert forward_flops(config, masked, everything) == forward_flops(config, masked) - table
