"""varlen_attention, in Triton's interpreter, against the float64 reference (run by ../test_triton_interpreter.py)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from twins import (
    DEVICE,
    DTYPES,
    assert_as_exact_as_the_reference,
    assert_compiles_whole,
    gpu_only,
    relative_rms,
    with_gradients,
)

from cellfoundry_bench.compiled import Resources
from cellfoundry_bench.kernels.inputs import packed_qkv
from cellfoundry_bench.measure import seconds
from cellfoundry_bench.ragged import cu_seqlens_of
from cellfoundry_bench.tune_attention import Batch
from cellfoundry_bench.tuning import Entry, search
from cellfoundry_kernels import varlen_attention
from cellfoundry_kernels.launch import SMALL_SHARED_MEMORY
from cellfoundry_kernels.varlen import kernel, reference, tiles
from cellfoundry_kernels.varlen.schedule import make_schedule, tile_bound


def twin_low_exact(
    inputs: Sequence[Tensor], grad: Tensor, cu_seqlens: Tensor, scale: float | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Output and gradients of the twin, of the reference in the same dtype, and of the reference in float64."""
    longest = int(cu_seqlens.diff().max())
    true_scale = inputs[0].shape[2] ** -0.5 if scale is None else scale

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen_attention(q, k, v, cu_seqlens, longest, scale)

    def torch_op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference.varlen_attention(q, k, v, cu_seqlens, true_scale)

    return (
        with_gradients(ours, inputs, grad),
        with_gradients(torch_op, inputs, grad),
        with_gradients(torch_op, [x.double() for x in inputs], grad),
    )


# Lengths below, at and above multiples of the tiles: 128 x 64, of short cells 64 x 32, in float32 32 x 32.
@pytest.mark.parametrize(
    ("lengths", "head_dim", "dtype"),
    [
        pytest.param([70, 2, 0, 128, 1, 130, 64], 64, torch.float16, id="cells7-len130-d64-fp16"),
        pytest.param([5, 0, 33, 1, 64], 32, torch.float16, id="cells5-len64-d32-fp16"),
        pytest.param([70, 3], 128, torch.float16, id="cells2-len70-d128-fp16"),
        pytest.param([70, 33], 24, torch.float16, id="cells2-len70-d24-fp16"),
        pytest.param([33, 2, 0, 64, 1], 64, torch.float32, id="cells5-len64-d64-fp32"),
        pytest.param([40, 3], 128, torch.float32, id="cells2-len40-d128-fp32"),
        pytest.param([40, 3], 24, torch.float32, id="cells2-len40-d24-fp32"),
        *(
            pytest.param(lengths, head_dim, torch.bfloat16, id=f"{name}-d{head_dim}-bf16")
            for name, lengths in {
                "cells5-len64": [5, 0, 33, 1, 64],
                "cells8-len500": [70, 2, 0, 500, 1, 130, 64, 257],
            }.items()
            for head_dim in (32, 64, 128)
            if DEVICE == "cuda"
        ),
    ],
)
def test_varlen_attention(lengths: list[int], head_dim: int, dtype: torch.dtype) -> None:
    inputs = packed_qkv(sum(lengths), 2, head_dim, dtype)
    grad = torch.randn(sum(lengths), 2, head_dim).to(dtype)
    assert_as_exact_as_the_reference(*twin_low_exact(inputs, grad, cu_seqlens_of(lengths), None))


# One head: float64's shares of 19,266 tokens take 3 GB each.
@gpu_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "lengths"),
    [
        pytest.param(1, [300, 2, 19_266, 64, 5_000, 3, 128, 2_000, 129], id="cells9-len19266"),
        pytest.param(2, [2 + cell % 9 for cell in range(10_000)], id="cells10000-len10"),
    ],
)
def test_cells_of_all_sizes_in_one_batch(heads: int, lengths: list[int], dtype: torch.dtype) -> None:
    inputs = packed_qkv(sum(lengths), heads, 64, dtype)
    grad = torch.randn(sum(lengths), heads, 64).to(dtype)
    assert_as_exact_as_the_reference(*twin_low_exact(inputs, grad, cu_seqlens_of(lengths), None))


@pytest.mark.parametrize("scale", [0.5, -0.5, 0.0])
def test_any_scale(scale: float) -> None:
    inputs, grad = packed_qkv(45, 1, 16, torch.float32), torch.randn(45, 1, 16)
    ours, low, exact = twin_low_exact(inputs, grad, cu_seqlens_of([40, 5]), scale)
    if scale == 0:  # the mean of the values: queries and keys have no gradient
        assert not ours.pop(1).any()
        assert not ours.pop(1).any()
        del exact[1:3], low[1:3]
    assert_as_exact_as_the_reference(ours, low, exact)


# Of rows behind a cell's end in the dK/dV kernel, which are never stored.
@pytest.mark.filterwarnings(
    "ignore:overflow encountered in exp2", "ignore:invalid value encountered in matmul"
)
def test_large_logits_neither_overflow_nor_vanish() -> None:
    # Masked keys are read as zeros: next to logits near -5,000 they would take the whole share.
    q = torch.full((70, 1, 16), 60.0) + torch.randn(70, 1, 16)
    inputs, grad = [q, -q, torch.randn(70, 1, 16)], torch.randn(70, 1, 16)
    ours, _, exact = twin_low_exact(inputs, grad, cu_seqlens_of([70]), 0.1)
    # Logits of 5,760 keep 4e-4 in float32, so do shares.
    assert max(relative_rms(a, b) for a, b in zip(ours, exact, strict=True)) < 1e-3


def test_not_packed_inputs_are_copied() -> None:
    cu_seqlens = cu_seqlens_of([20, 9]).long()
    q, k, v = (torch.randn(2, 29, 16).transpose(0, 1) for _ in range(3))
    expected = reference.varlen_attention(q.double(), k.double(), v.double(), cu_seqlens, 0.25)
    assert relative_rms(varlen_attention(q, k, v, cu_seqlens, 20), expected) <= 1e-5


def test_offsets_pass_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    # The last tile of the first cell starts 2^31 elements behind the first token, the second cell yet farther.
    tokens, stride = 280, 2**23
    spread = torch.empty(tokens * stride, dtype=torch.float16).as_strided((tokens, 1, 16), (stride, 16, 1))
    spread[:] = torch.randn(tokens, 1, 16)
    cu_seqlens = cu_seqlens_of([270, 10])
    op = partial(varlen_attention, cu_seqlens=cu_seqlens, max_seqlen=270)
    packed, grad = spread.contiguous(), torch.randn(tokens, 1, 16).half()
    expected = with_gradients(op, [packed] * 3, grad)
    for ours, dense in zip(with_gradients(op, [spread] * 3, grad), expected, strict=True):
        assert torch.equal(ours, dense)


def test_a_nan_stays_in_its_cell_and_comes_out() -> None:
    q, k, v = (torch.randn(60, 1, 16) for _ in "qkv")
    k[45, 0, 3] = torch.nan
    out = varlen_attention(q, k, v, cu_seqlens_of([40, 20]), 40)
    assert out[40:].isnan().all()
    assert not out[:40].isnan().any()


# A cell alone has tiles for its own length: up to 64 tokens, in half precision, other ones than beside a longer cell.
@pytest.mark.parametrize(
    ("own", "dtype", "bound"),
    [
        pytest.param(slice(30, 130), torch.float16, 0.0, id="cell-len100-fp16-same-bits"),
        pytest.param(slice(30), torch.float32, 0.0, id="cell-len30-fp32-same-bits"),
        pytest.param(slice(130, 170), torch.float16, 2**-10, id="cell-len40-fp16-but-for-rounding"),
    ],
)
def test_a_cell_in_company_of_one_with_100_tokens(own: slice, dtype: torch.dtype, bound: float) -> None:
    inputs, grad = packed_qkv(170, 2, 16, dtype), torch.randn(170, 2, 16).to(dtype)
    length = len(range(170)[own])
    packed = partial(varlen_attention, cu_seqlens=cu_seqlens_of([30, 100, 40]), max_seqlen=100)
    single = partial(varlen_attention, cu_seqlens=cu_seqlens_of([length]), max_seqlen=length)
    together = with_gradients(packed, inputs, grad)
    alone = with_gradients(single, [x[own] for x in inputs], grad[own])
    for in_company, by_itself in zip(together, alone, strict=True):
        assert relative_rms(in_company[own], by_itself) <= bound


def test_the_same_bits_in_every_run_of_the_same_batch() -> None:
    inputs, grad = packed_qkv(170, 2, 16, torch.float16), torch.randn(170, 2, 16).half()
    op = partial(varlen_attention, cu_seqlens=cu_seqlens_of([30, 100, 40]), max_seqlen=100)
    for one, other in zip(with_gradients(op, inputs, grad), with_gradients(op, inputs, grad), strict=True):
        assert torch.equal(one, other)


def test_varlen_attention_is_a_registered_op() -> None:
    cu_seqlens = cu_seqlens_of([12, 5])
    q, k, v = inputs = [torch.randn(17, 1, 16, requires_grad=True) for _ in "qkv"]
    torch.library.opcheck(kernel._forward, (*inputs, cu_seqlens, 12, 0.25))
    out, lse = (x.detach() for x in kernel._forward(*inputs, cu_seqlens, 12, 0.25))
    saved = (torch.randn_like(out), q.detach(), k.detach(), v.detach(), out, lse)
    torch.library.opcheck(kernel._backward, (*saved, cu_seqlens, 12, 0.25))
    op = lambda q, k, v: varlen_attention(q, k, v, cu_seqlens, 12)  # noqa: E731
    assert_compiles_whole(op, inputs, torch.randn_like(out))


@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param([19_266, 2, 0, 130, 130, 128], id="cells6-len19266"),
        pytest.param([7 + i % 3 for i in range(200)], id="cells200-tiny"),
        pytest.param([0, 0], id="cells2-empty"),
    ],
)
def test_the_schedule_holds_every_tile_once_and_long_cells_first(lengths: list[int]) -> None:
    by_length = sorted(range(len(lengths)), key=lambda cell: -lengths[cell])
    expected = [tile << 32 | cell for cell in by_length for tile in range(-(-lengths[cell] // 128))]
    bound = tile_bound(sum(lengths), len(lengths), 128)
    assert bound - len(expected) < len(lengths)
    schedule = make_schedule(cu_seqlens_of(lengths), sum(lengths), 128)
    assert schedule.tolist() == expected + [-1] * (bound - len(expected))


def test_tuning_times_every_tile() -> None:
    candidates = [tiles.Tile(64, 64, 4, 2), tiles.Tile(128, 64, 8, 3)]
    batch = Batch(np.array([5, 3]), 16, torch.float16, device=DEVICE, heads=1)
    uses = [batch.use(name) for name in kernel.KERNELS]
    any_fits = Resources(registers=128, stack_bytes=0, shared_bytes=0, blocks=1, warps=8)
    timed = search(Entry("all", candidates, lambda tile: tile.rows, uses), lambda launch: any_fits, seconds)
    assert sorted(spent for spent, _ in timed) == [spent for spent, _ in timed]
    assert {sizes for _, sizes in timed} == set(candidates)


def test_heads_wider_than_the_tables_are_refused() -> None:
    q = torch.randn(3, 1, 256)
    with pytest.raises(ValueError, match="got heads of 256 channels, its kernels take up to 128"):
        varlen_attention(q, q, q, cu_seqlens_of([3]), 3)


@pytest.mark.parametrize("capability", [80, *SMALL_SHARED_MEMORY, 90, 100])
def test_devices_with_little_shared_memory_take_the_tiles_that_fit(capability: int) -> None:
    entry = 90 if capability in (90, 100) else 80
    for name in kernel.KERNELS:
        for head_dim in (32, 64, 128):
            sizes = tiles.tile_for(name, torch.float16, head_dim, 500, capability)
            assert sizes == tiles.HALF[entry, name][head_dim]


def test_nothing_to_do_launches_nothing() -> None:
    none = torch.empty(0, 2, 16)
    assert varlen_attention(none, none, none, cu_seqlens_of([]), 0).shape == (0, 2, 16)
    assert varlen_attention(none, none, none, cu_seqlens_of([0]), 0).shape == (0, 2, 16)
