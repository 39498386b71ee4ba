"""What the kernels save for backward is what a plan of a run counts."""

from __future__ import annotations

import pytest
import torch
from twins import DEVICE

pytest.importorskip("pydantic", reason="plans belong to the training layer")

from cellfoundry_bench.ragged import counts_of_lengths
from cellfoundry_kernels import mask_cells, masked_mse
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.decoder_context import draw_context
from cellfoundry_training.plan.memory import activation_bytes
from cellfoundry_training.plan.workload import Workload

GENES, CELLS, EXPRESSED = 100, 3, 60


def saved_by_autograd(model: CellModel, rate: float | None) -> tuple[int, Workload]:
    """Bytes of every storage, parameters aside, that a training forward keeps for backward, and its work."""
    own = {x.untyped_storage().data_ptr() for x in [*model.parameters(), *model.buffers()]}
    columns = (x.to(DEVICE) for x in counts_of_lengths([EXPRESSED] * CELLS, GENES))
    masked = mask_cells(*columns, torch.arange(CELLS), n_genes=GENES, seed=0, step=1)
    tokens, rows, context = masked.position_N.numel(), CELLS * model.config.n_positions, None
    entered = tokens + int((masked.mask_value_X == model.config.mask_token_id).sum())
    if rate is not None:
        context = draw_context(masked, torch.arange(CELLS), n_genes=GENES, rate=rate, seed=0, step=1)
        kept_zeros = int((masked.mask_value_X == 0).sum())
        entered = rows = entered + kept_zeros + len(context.position_S)
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        masked_mse(model(masked, context), masked.target_X)
    size = sum(x.untyped_storage().nbytes() for pointer, x in saved.items() if pointer not in own)
    work = Workload(
        expressed=EXPRESSED,
        tokens=tokens / CELLS,
        rows=rows / CELLS,
        entered=entered / CELLS,
        asked=masked.target_X.numel() / CELLS,
        flops=0.0,
    )
    return size, work


@pytest.mark.parametrize(
    ("encoder_depth", "decoder_depth", "rate"), [(1, 3, None), (4, 2, None), (1, 3, 0.3)]
)
def test_activation_bytes_are_what_the_kernels_save(
    encoder_depth: int, decoder_depth: int, rate: float | None
) -> None:
    config = ModelConfig(
        n_genes=GENES,
        bins=10,
        bin_alpha=1.0,
        mask_token_id=102,
        pad_token_id=103,
        encoder_width=64,
        encoder_depth=encoder_depth,
        encoder_heads=2,
        decoder_width=32,
        decoder_depth=decoder_depth,
        decoder_heads=2,
        decoder_head_dim=16,
        favor_features=44,
    )
    size, work = saved_by_autograd(CellModel(config), rate)
    assert CELLS * activation_bytes(config, 4, work) == pytest.approx(size, rel=0.1)
