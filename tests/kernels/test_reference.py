"""The torch references against formulas written out in float64, on fresh random inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from twins import relative_rms

from cellfoundry_bench.kernels.inputs import packed_qkv
from cellfoundry_bench.ragged import cu_seqlens_of
from cellfoundry_kernels import (
    favor_attention,
    masked_mse,
    pool_cells,
    scatter_into_zero_table,
    value_embedding,
    varlen_attention,
)

FP32_BOUND = 1e-5
EmbeddingInputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def embedding_inputs(tokens: int, bins: int, width: int, dtype: torch.dtype) -> EmbeddingInputs:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype)

    mlp2_weight_BB = random(bins, bins) / bins**0.5
    return random(tokens), random(bins, 1), random(bins), mlp2_weight_BB, random(bins), random(bins, width)


def value_embedding_written_out(
    v: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, t: Tensor
) -> Tensor:
    rows = []
    for value in v:
        h = torch.stack([x if x > 0 else 0.1 * x for x in w1[:, 0] * value + b1])
        z = w2 @ h + b2 + 0.7 * h
        rows.append((z.exp() / z.exp().sum()) @ t)
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("tokens", "bins", "width"),
    [(1, 10, 8), (50, 100, 24)],
    ids=["tokens1-bins10-d8-fp32", "tokens50-bins100-d24-fp32"],
)
def test_value_embedding_is_the_formula(tokens: int, bins: int, width: int) -> None:
    inputs = embedding_inputs(tokens, bins, width, torch.float32)
    expected = value_embedding_written_out(*(x.double() for x in inputs))
    assert relative_rms(value_embedding(*inputs, alpha=0.7), expected) <= FP32_BOUND


def test_value_embedding_gradients() -> None:
    tensors = [
        *embedding_inputs(6, 5, 3, torch.float64),
        *torch.randn(6, 1, 3, dtype=torch.float64).split([1, 1, 4]),
    ]
    tensors[0][2], tensors[0][4] = 102.0, 103.0

    def op(*inputs: Tensor) -> Tensor:
        *plain, mask_1D, pad_1D, table_P1D = inputs
        return value_embedding(
            *plain,
            0.7,
            mask_1D=mask_1D[0],
            pad_1D=pad_1D[0],
            mask_token_id=102,
            pad_token_id=103,
            position_table_PD=table_P1D[:, 0],
            position_N=torch.tensor([3, 0, 0, 1, 3, 0]),
        )

    assert torch.autograd.gradcheck(op, [x.clone().requires_grad_() for x in tensors])


def test_value_embedding_adds_positions_and_replaces_mask_and_pad_values() -> None:
    value, *weights = embedding_inputs(4, 5, 3, torch.float64)
    value[1], value[3] = 102.0, 103.0
    mask, pad, table = (torch.randn(rows, 3, dtype=torch.float64) for rows in (1, 1, 9))
    position = torch.tensor([8, 0, 8, 2])
    plain = value_embedding(value, *weights, alpha=0.7)
    expected = torch.stack([plain[0], mask[0], plain[2], pad[0]]) + table[position]
    rows = {"mask_1D": mask, "pad_1D": pad, "mask_token_id": 102, "pad_token_id": 103}
    positions = {"position_table_PD": table, "position_N": position}
    out = value_embedding(value, *weights, alpha=0.7, **rows, **positions)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.parametrize("given", ["mask_1D", "pad_1D", "position_table_PD", "position_N"])
def test_value_embedding_refuses_half_a_pair(given: str) -> None:
    inputs = embedding_inputs(4, 5, 3, torch.float32)
    with pytest.raises(ValueError, match=r"belong together; give both or neither\."):
        value_embedding(*inputs, alpha=0.7, **{given: torch.zeros(1, 3)})


def attention_written_out(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    out = torch.empty_like(q)
    for first, last in pairwise(cu_seqlens.tolist()):
        logits = torch.einsum("ihk,jhk->hij", q[first:last], k[first:last]) / math.sqrt(q.shape[-1])
        out[first:last] = torch.einsum("hij,jhk->ihk", logits.softmax(-1), v[first:last])
    return out


@pytest.mark.parametrize(
    ("lengths", "heads", "head_dim"),
    [([1], 1, 8), ([500] * 8, 2, 64), ([2, 700, 0, 3, 150, 2], 3, 16)],
    ids=["cells1-len1-d8-fp32", "cells8-len500-d64-fp32", "cells6-ragged-d16-fp32"],
)
def test_varlen_attention_is_softmax_attention_in_each_cell(
    lengths: list[int], heads: int, head_dim: int
) -> None:
    q, k, v = packed_qkv(sum(lengths), heads, head_dim, torch.float32)
    cu_seqlens = cu_seqlens_of(lengths)
    expected = attention_written_out(q.double(), k.double(), v.double(), cu_seqlens)
    out = varlen_attention(q, k, v, cu_seqlens, max(lengths))
    assert relative_rms(out, expected) <= FP32_BOUND


def test_varlen_attention_gradients() -> None:
    cu_seqlens = cu_seqlens_of([3, 0, 1, 4])
    inputs = [torch.randn(8, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: varlen_attention(q, k, v, cu_seqlens, 4, 0.3), inputs)


def test_varlen_attention_does_not_depend_on_the_company() -> None:
    q, k, v = (torch.randn(300, 2, 16) for _ in range(3))
    together = varlen_attention(q, k, v, cu_seqlens_of([100, 37, 163]), 163)
    alone = varlen_attention(q[100:137], k[100:137], v[100:137], cu_seqlens_of([37]), 37)
    assert torch.equal(together[100:137], alone)


def test_varlen_attention_of_18000_tokens_takes_the_flash_path() -> None:
    q = torch.randn(18_000, 1, 8)
    with torch.profiler.profile(profile_memory=True) as profile:
        varlen_attention(q, q, q, cu_seqlens_of([18_000]), 18_000)
    events = profile.key_averages()
    assert any("flash_attention_for_cpu" in event.key for event in events)
    # The square of the tokens would be 1.3 GB; q itself is 0.6 MB.
    assert max(event.cpu_memory_usage for event in events) < 20e6


def test_varlen_attention_without_tokens() -> None:
    empty = torch.empty(0, 2, 8)
    assert varlen_attention(empty, empty, empty, cu_seqlens_of([0, 0]), 0).shape == (0, 2, 8)


def test_varlen_attention_refuses_keys_of_another_kind() -> None:
    q, k = torch.randn(3, 1, 8), torch.randn(3, 2, 8)
    with pytest.raises(ValueError, match=r"\(3, 1, 8\) torch.float32, \(3, 2, 8\) torch.float32, .*one kind"):
        varlen_attention(q, k, q, cu_seqlens_of([3]), 3)


def test_the_gradient_of_a_pooled_maximum_goes_to_the_first_of_equal_tokens() -> None:
    x = torch.tensor([[1.0], [2.0], [2.0], [0.0], [0.0]], requires_grad=True)
    pool_cells(x, cu_seqlens_of([5]), "max").neg().sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0, -1, 0, 0, 0]


def favor_written_out(q: Tensor, k: Tensor, v: Tensor, projection: Tensor) -> Tensor:
    """Features as published, with eps inside and the m^-0.5 factor; the maxima carry no gradient."""
    c = q.shape[-1] ** -0.25

    def features(z: Tensor, maximum: Callable[[Tensor], Tensor]) -> Tensor:
        dash = c * torch.einsum("chpk,mk->chpm", z, projection)
        half_norm = c**2 * z.square().sum(-1, keepdim=True) / 2
        return len(projection) ** -0.5 * ((dash - half_norm - maximum(dash).detach()).exp() + 1e-4)

    phi_q = features(q, lambda dash: dash.amax(-1, keepdim=True))
    phi_k = features(k, lambda dash: torch.stack([cell.max() for cell in dash])[:, None, None, None])
    numerator = phi_q @ (phi_k.transpose(-1, -2) @ v)
    return numerator / (phi_q * phi_k.sum(-2, keepdim=True)).sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("cells", "heads", "positions", "head_dim"),
    [(1, 1, 1, 8), (3, 2, 70, 16), (2, 4, 500, 64)],
    ids=["cells1-len1-d8-fp32", "cells3-len70-d16-fp32", "cells2-len500-d64-fp32"],
)
def test_favor_attention_and_its_gradients_are_the_formula(
    cells: int, heads: int, positions: int, head_dim: int
) -> None:
    projection = torch.randn(int(head_dim * math.log(head_dim)), head_dim)
    inputs = [torch.randn(cells, heads, positions, head_dim) for _ in range(3)]
    grad = torch.randn(cells, heads, positions, head_dim)
    single = [x.clone().requires_grad_() for x in inputs]
    out = favor_attention(single[0], single[1], single[2], projection)
    out.backward(grad)
    double = [x.double().requires_grad_() for x in inputs]
    expected = favor_written_out(double[0], double[1], double[2], projection.double())
    expected.backward(grad.double())
    assert relative_rms(out, expected) <= FP32_BOUND
    # One position attends to itself only: the gradients of its query and key are exactly zero.
    for ours, theirs in zip(single, double, strict=True) if positions > 1 else []:
        assert ours.grad is not None
        assert theirs.grad is not None
        assert relative_rms(ours.grad, theirs.grad) <= FP32_BOUND


def test_favor_attention_of_large_inputs_neither_overflows_nor_vanishes() -> None:
    projection = torch.randn(16, 8)
    q, k, v = (10 * torch.randn(2, 2, 60, 8) for _ in range(3))
    expected = favor_written_out(q.double(), k.double(), v.double(), projection.double())
    assert relative_rms(favor_attention(q, k, v, projection), expected) <= FP32_BOUND


def test_favor_attention_does_not_depend_on_the_company() -> None:
    projection = torch.randn(16, 8)
    q, k, v = (torch.randn(3, 2, 40, 8) for _ in range(3))
    k[0] *= 10  # a neighbour with far larger keys
    alone = favor_attention(q[1:2], k[1:2], v[1:2], projection)
    assert relative_rms(favor_attention(q, k, v, projection)[1:2], alone) <= 1e-6


def test_favor_attention_keeps_half_precision_outside_only() -> None:
    projection = torch.randn(16, 8)
    q, k, v = (torch.randn(1, 2, 40, 8).bfloat16() for _ in range(3))
    out = favor_attention(q, k, v, projection)
    assert out.dtype == torch.bfloat16
    expected = favor_written_out(q.double(), k.double(), v.double(), projection.double())
    assert torch.equal(out, expected.float().bfloat16()) or relative_rms(out, expected) < 2e-3


def pool_written_out(x: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    rows = []
    for first, last in pairwise(cu_seqlens.tolist()):
        tokens = x[first:last]
        if last - first <= 2:
            rows.append(torch.full((x.shape[1] * (4 if mode == "all" else 1),), torch.nan, dtype=x.dtype))
        elif mode == "max":
            rows.append(tokens.amax(0))
        else:
            genes = tokens[:-2]
            rows.append(torch.cat([tokens[-1], tokens[-2], genes.amax(0), genes.mean(0)]))
    return torch.stack(rows)


@pytest.mark.parametrize("mode", ["all", "max"])
@pytest.mark.parametrize(
    "lengths", [[3], [3, 50, 2, 7, 0, 900, 2]], ids=["cells1-len3-d5", "cells7-ragged-with-empty-d5"]
)
def test_pool_cells_and_its_gradients_are_the_loop(mode: str, lengths: list[int]) -> None:
    cu_seqlens = cu_seqlens_of(lengths)
    ours = torch.randn(sum(lengths), 5, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    out, expected = pool_cells(ours, cu_seqlens, mode), pool_written_out(theirs, cu_seqlens, mode)
    torch.testing.assert_close(out, expected, equal_nan=True, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    out.backward(grad)
    expected.backward(grad)
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_pool_cells_keeps_the_mean_of_many_half_precision_tokens() -> None:
    x = torch.ones(9_002, 1, dtype=torch.float16)
    assert pool_cells(x, cu_seqlens_of([9_002]), "all")[0, 3] == 1


@pytest.mark.parametrize(("mode", "width"), [("all", 20), ("max", 5)])
def test_pool_cells_without_tokens(mode: str, width: int) -> None:
    assert pool_cells(torch.empty(0, 5), cu_seqlens_of([]), mode).shape == (0, width)
    empty_cells = pool_cells(torch.empty(0, 5), cu_seqlens_of([0, 0]), mode)
    assert empty_cells.shape == (2, width)
    assert empty_cells.isnan().all()
    assert pool_cells(torch.randn(1, 5), cu_seqlens_of([0, 1]), mode).isnan().all()


def test_pool_cells_refuses_an_unknown_mode() -> None:
    with pytest.raises(ValueError, match="use 'all' or 'max'"):
        pool_cells(torch.randn(3, 2), cu_seqlens_of([3]), "mean")


def test_scatter_into_zero_table_overwrites_the_encoder_positions() -> None:
    table = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    encoder = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    cell, position = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 4, 0, 4])

    out = scatter_into_zero_table(table, encoder, cell, position, 3)
    expected = torch.stack([table, table, table]).detach().clone()
    for token in range(4):
        expected[cell[token], position[token]] = encoder[token].detach()
    assert torch.equal(out, expected)
    assert torch.autograd.gradcheck(
        lambda t, e: scatter_into_zero_table(t, e, cell, position, 3), [table, encoder]
    )


def test_scatter_into_zero_table_refuses_what_does_not_fit() -> None:
    table, encoder, index = torch.randn(5, 3), torch.randn(4, 3), torch.arange(4)
    with pytest.raises(ValueError, match="width 3 and tokens of width 2"):
        scatter_into_zero_table(table, encoder[:, :2], index, index, 4)
    with pytest.raises(ValueError, match="4 tokens, 3 cell indices and 4 positions"):
        scatter_into_zero_table(table, encoder, index[1:], index, 4)


def test_masked_mse_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"predictions \(3,\) and targets \(2,\)"):
        masked_mse(torch.randn(3), torch.randn(2))


def test_masked_mse_is_the_mean_square() -> None:
    prediction, target = torch.randn(100), torch.randn(100)
    torch.testing.assert_close(masked_mse(prediction, target), (prediction - target).square().mean())
    inputs = [torch.randn(4, dtype=torch.float64, requires_grad=True), torch.randn(4, dtype=torch.float64)]
    assert torch.autograd.gradcheck(masked_mse, inputs)


def test_masked_mse_of_nothing_is_zero_and_half_precision_is_summed_in_float32() -> None:
    assert masked_mse(torch.empty(0), torch.empty(0)) == 0
    many = torch.full((100_000,), 2.0, dtype=torch.float16)
    loss = masked_mse(many, torch.zeros(100_000))
    assert loss.dtype == torch.float32
    assert loss == 4
