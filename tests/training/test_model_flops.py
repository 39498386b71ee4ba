"""FLOPs by formula against torch's own counter on a real forward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cellfoundry_kernels.varlen import cpu, reference
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.flops import decoder_flops, encoder_flops
from cellfoundry_model.presets import PRESETS

CONFIG = replace(PRESETS["3m"], n_genes=200)


def tokens(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    position_N = torch.cat([torch.arange(length) for length in lengths])
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return torch.rand(len(position_N)), position_N, cu_seqlens, max(lengths)


@pytest.mark.parametrize("lengths", [[40], [7, 90, 33]], ids=str)
def test_formulas_are_what_a_forward_pass_does(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    # The counter does not look into a registered op.
    monkeypatch.setattr(cpu, "varlen_attention", reference.varlen_attention)
    model = CellModel(CONFIG).eval()
    cells = tokens(lengths)
    # The counter knows nothing of the fused attention of CPUs.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder_ND = model.encode_tokens(*cells)
    # The scalar's product with the first layer's weight is elementwise to the counter.
    scalar = 2 * sum(lengths) * CONFIG.bins
    assert counter.get_total_flops() == encoder_flops(CONFIG, lengths) - scalar
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.expression(model.decode(encoder_ND, *cells[1:3]))
    zero_gene = 2 * CONFIG.bins * (CONFIG.bins + CONFIG.encoder_width)
    # T and S have no expression.
    no_genes = 2 * len(lengths) * 2 * CONFIG.decoder_width
    expected = decoder_flops(CONFIG, len(lengths), sum(lengths)) + zero_gene - no_genes
    assert counter.get_total_flops() == expected


def test_the_published_decoder_takes_most_of_the_work() -> None:
    config = PRESETS["100m"]
    encoder, decoder = encoder_flops(config, [1050]), decoder_flops(config, 1, 1050)
    assert 0.75 < decoder / (encoder + decoder) < 0.85
