"""The masking objective the dense way: matrices of cells x genes, as training scripts for such models do it.

Same distribution as ``mask_cells`` (thinning, normalising, 30 % and 3 %, 80/10/10), other random numbers.

Shape legend: C cells, G genes, X chosen positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cellfoundry_kernels.masking import THINNING_MINIMUM_TOTAL

MASK_TOKEN = 102.0


def dense_mask(indptr: Tensor, gene_ids: Tensor, counts: Tensor, n_genes: int) -> tuple[Tensor, ...]:
    """Encoder input (C, G + 2), which of it are tokens, chosen positions (C, G), and targets (C, G)."""
    cells = len(indptr) - 1
    raw_CG = torch.zeros(cells, n_genes, device=counts.device)
    cell_Z = torch.repeat_interleave(torch.arange(cells, device=counts.device), indptr.diff())
    raw_CG[cell_Z, gene_ids.long()] = counts
    total_C1 = raw_CG.sum(1, keepdim=True).clamp(min=1)
    share_C1 = torch.distributions.Beta(2.0, 2.0).sample((cells, 1)).to(counts.device)
    thinned_C1 = (torch.rand_like(total_C1) < 0.5) & (total_C1 >= THINNING_MINIMUM_TOTAL)
    input_CG = torch.binomial(raw_CG, torch.where(thinned_C1, share_C1, 1.0).expand_as(raw_CG).contiguous())
    input_total_C1 = input_CG.sum(1, keepdim=True).clamp(min=1)
    target_CG = (raw_CG / total_C1 * 1e4).log1p()
    value_CG = (input_CG / input_total_C1 * 1e4).log1p()

    chance_CG = torch.where(input_CG > 0, 0.3, 0.03)
    chosen_CG = torch.rand_like(chance_CG) < chance_CG
    decision_CG = torch.rand_like(chance_CG)
    masked_CG = chosen_CG & (decision_CG < 0.8)
    random_CG = chosen_CG & (decision_CG >= 0.8) & (decision_CG < 0.9)
    # A random one of the cell's own values: those are drawn with equal chances.
    drawn_CG = torch.multinomial((value_CG > 0).float() + 1e-12, n_genes, replacement=True)
    value_CG = torch.where(random_CG, value_CG.gather(1, drawn_CG), value_CG)
    shown_CG = torch.where(masked_CG, MASK_TOKEN, value_CG)
    depths_C2 = torch.cat([total_C1.log10(), input_total_C1.log10()], 1)
    encoder_CP = torch.cat([shown_CG, depths_C2], 1)
    is_token_CP = torch.cat([(value_CG > 0) & ~masked_CG, torch.ones_like(depths_C2, dtype=torch.bool)], 1)
    return encoder_CP, is_token_CP, chosen_CG, target_CG
