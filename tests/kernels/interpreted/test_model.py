"""The whole model in Triton's interpreter: one training step through every kernel, against the reference path."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from twins import DEVICE, relative_rms

from cellfoundry_bench.ragged import counts_of_lengths
from cellfoundry_kernels import MaskedCells, mask_cells, masked_mse
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.cell_rows import CellRows
from cellfoundry_model.decoder_context import DecoderContext, draw_context
from cellfoundry_model.presets import PRESETS

GENES = 40


def masked_cells(genes_per_cell: list[int], mask_prob: float = 0.4) -> MaskedCells:
    columns = (x.to(DEVICE) for x in counts_of_lengths(genes_per_cell, GENES))
    cell_ids = torch.arange(len(genes_per_cell))
    share = {"value_mask_prob": mask_prob, "zero_mask_prob": mask_prob}
    return mask_cells(*columns, cell_ids, n_genes=GENES, seed=0, step=1, **share)


def step(
    model: CellModel, masked: MaskedCells, *, context: DecoderContext | None = None, again: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Predictions and pooled cells in one row, and the gradient of every parameter that has one."""
    inputs = (masked, context)
    prediction_X = checkpoint(model, *inputs, use_reentrant=False) if again else model(*inputs)
    encoder = masked.value_N, masked.position_N, masked.cu_seqlens, masked.max_seqlen
    pooled = model.cell_embedding(*encoder)
    # The sums give gradients that are one number, expanded.
    loss = masked_mse(prediction_X, masked.target_X) + prediction_X.sum() + pooled.sum()
    grads = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return torch.cat([prediction_X, pooled.flatten()]), list(grads)


@pytest.fixture
def model() -> CellModel:
    config = replace(PRESETS["tiny"], n_genes=GENES, bins=20, encoder_depth=1, decoder_depth=2)
    return CellModel(config)


@pytest.mark.parametrize("rate", [None, 0.3], ids=["full", "sampled"])
def test_a_training_step_is_that_of_the_reference(
    model: CellModel, rate: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked, context = masked_cells([20, 10], mask_prob=0.4 if rate is None else 0.2), None
    if rate is not None:
        context = draw_context(masked, torch.arange(2), n_genes=GENES, rate=rate, seed=0, step=1)
    ours, grads = step(model, masked, context=context)
    same, grads_again = step(model, masked, context=context, again=True)
    monkeypatch.setenv("CELLFOUNDRY_KERNELS", "torch")
    exact, exact_grads = step(copy.deepcopy(model).double(), masked, context=context)
    assert relative_rms(ours, exact) <= 1e-5
    assert torch.equal(same, ours)
    for (name, parameter), grad, again, expected in zip(
        model.named_parameters(), grads, grads_again, exact_grads, strict=True
    ):
        assert grad.dtype == parameter.dtype
        assert torch.equal(again, grad), name
        if expected.any():
            assert relative_rms(grad, expected) <= 2e-5, name  # through a dozen ops, each within 1e-5
        else:
            assert not grad.any(), name


def test_autocast_gives_gradients_of_the_parameters_dtype(model: CellModel) -> None:
    masked = masked_cells([20, 10])
    exact, exact_grads = step(model, masked)
    with torch.autocast(DEVICE, torch.float16):
        ours, grads = step(model, masked)
    assert relative_rms(ours, exact) <= 5e-3
    assert [grad.dtype for grad in grads] == [torch.float32] * len(grads)
    # ReLUs that change sides move a few units.
    joined = torch.cat([grad.flatten() for grad in grads])
    assert relative_rms(joined, torch.cat([grad.flatten() for grad in exact_grads])) <= 2e-2


def test_nothing_chosen_and_no_cells(model: CellModel) -> None:
    prediction_X, grads = step(model, masked_cells([6], mask_prob=0.0))
    assert not prediction_X.isnan().any()
    assert not any(grad.isnan().any() for grad in grads)
    none = mask_cells(
        *(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0)),
        *(torch.zeros(0, dtype=torch.int64),),
        **{"n_genes": GENES, "seed": 0, "step": 1},
    )
    assert model(none).shape == (0,)


def test_compiles_into_one_graph(model: CellModel) -> None:
    masked = masked_cells([20, 10])
    torch.compiler.reset()
    compiled = torch.compile(model.encoder.layers[0], fullgraph=True, backend="aot_eager")
    x_ND = torch.randn(len(masked.value_N), 32)
    expected = model.encoder.layers[0](x_ND, masked.cu_seqlens, masked.max_seqlen)
    torch.testing.assert_close(compiled(x_ND, masked.cu_seqlens, masked.max_seqlen), expected, rtol=0, atol=0)
    x_RW, rows = torch.randn(2 * (GENES + 2), 16), CellRows((2, GENES + 2))
    compiled = torch.compile(model.decoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x_RW, rows), model.decoder(x_RW, rows), rtol=0, atol=0)
