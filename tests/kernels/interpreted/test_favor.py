"""favor_attention, in Triton's interpreter, against the float64 reference (run by ../test_triton_interpreter.py)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from twins import (
    DEVICE,
    DTYPES,
    assert_as_exact_as_the_reference,
    assert_compiles_whole,
    gpu_only,
    interpreter_only,
    relative_rms,
    with_gradients,
)

from cellfoundry_bench.kernels.inputs import split_heads
from cellfoundry_bench.tune_favor import NAMES, Batch
from cellfoundry_kernels import favor_attention
from cellfoundry_kernels.favor import kernel, reference, tiles
from cellfoundry_kernels.favor.blocks import (
    add_weighted,
    add_weighted_columns,
    as_columns,
    sums_as_column,
    zero_sums,
)

Shape = tuple[int, int, int, int, int]  # cells, heads, queries, keys, head dim


def random_inputs(shape: Shape, dtype: torch.dtype, scale: float = 1.0) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values, and a gradient."""
    cells, heads, queries, keys, head_dim = shape
    q, k, v, grad = (
        split_heads(cells, heads, rows, head_dim, dtype) for rows in (queries, keys, keys, queries)
    )
    return [scale * q, scale * k, v + 1], grad


def twin_low_exact(
    inputs: list[Tensor], grad: Tensor, projection: Tensor, weight: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Output and gradients of the twin, of the reference in the same dtype, and of the reference in float64."""
    ours = partial(favor_attention, projection_MK=projection, key_weight_CP=weight)
    low = partial(reference.favor_attention, projection_MK=projection, weight_CP=weight)
    exact = partial(reference.favor_attention, projection_MK=projection.double(), weight_CP=weight)
    return (
        with_gradients(ours, inputs, grad),
        with_gradients(low, inputs, grad),
        with_gradients(exact, [x.double() for x in inputs], grad),
    )


FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("shape", "features", "dtype"),
    [
        pytest.param((1, 1, 40, 40, 64), 266, FP32, id="cells1-len40-d64-m266-fp32"),
        pytest.param((1, 1, 9, 70, 64), 266, FP16, id="cells1-len9of70-d64-m266-fp16"),
        pytest.param((2, 2, 33, 33, 24), 40, FP32, id="cells2-len33-d24-m40-fp32"),
        pytest.param((2, 1, 20, 50, 32), 17, FP16, id="cells2-len20of50-d32-m17-fp16"),
        pytest.param((1, 1, 17, 30, 64), 48, FP32, id="cells1-len17of30-d64-m48-fp32"),
        *(
            [
                pytest.param((2, 2, 300, 300, 64), 266, BF16, id="cells2-len300-d64-m266-bf16"),
                pytest.param((2, 2, 90, 500, 32), 110, BF16, id="cells2-len90of500-d32-m110-bf16"),
                pytest.param((2, 2, 300, 300, 16), 44, BF16, id="cells2-len300-d16-m44-bf16"),
            ]
            if DEVICE == "cuda"
            else []
        ),
    ],
)
def test_favor_attention(shape: Shape, features: int, dtype: torch.dtype) -> None:
    inputs, grad = random_inputs(shape, dtype)
    projection = torch.randn(features, shape[-1])
    assert_as_exact_as_the_reference(*twin_low_exact(inputs, grad, projection))


@gpu_only
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_position_of_the_published_model(dtype: torch.dtype) -> None:
    inputs, grad = random_inputs((2, 2, 19_266, 19_266, 64), dtype)
    assert_as_exact_as_the_reference(*twin_low_exact(inputs, grad, torch.randn(266, 64)))


@interpreter_only
@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        pytest.param((2, 1, 20, 16), (2**31 + 32, 16, 16, 1), id="cells2-far-apart"),
        pytest.param((1, 2, 20, 16), (16, 2**31 + 32, 16, 1), id="heads2-far-apart"),
        pytest.param((1, 1, 260, 16), (16, 16, 2**23, 1), id="len260-far-apart"),
    ],
)
def test_rows_beyond_two_to_the_31_elements(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    """In memory that is reserved but, but for the rows used, never touched."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    assert last >= 2**31
    spread = torch.empty(last + 1, dtype=FP16).as_strided(shape, strides)
    spread.copy_(torch.randn(shape))
    assert tiles.with_dense_rows(spread) is spread
    op, grad = partial(favor_attention, projection_MK=torch.randn(20, 16)), torch.randn(shape).half()
    expected = with_gradients(op, [spread.contiguous()] * 3, grad)
    for ours, dense in zip(with_gradients(op, [spread] * 3, grad), expected, strict=True):
        assert torch.equal(ours, dense)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        pytest.param((2, 2, 10, 16), (320, 160, 1, 10), id="channels-apart"),
        pytest.param((1, 1, 2, 16), (16, 16, 2**24, 1), id="rows-too-far-apart"),
    ],
)
def test_rows_that_the_kernels_cannot_address_are_copied(
    shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    x = torch.randn(2**24 + 16).as_strided(shape, strides)
    copied = tiles.with_dense_rows(x)
    assert copied is not x
    assert torch.equal(copied, x)
    assert copied.stride(3) == 1
    op, grad = partial(favor_attention, projection_MK=torch.randn(20, 16)), torch.randn(shape)
    expected = with_gradients(op, [copied] * 3, grad)
    for ours, dense in zip(with_gradients(op, [x] * 3, grad), expected, strict=True):
        assert torch.equal(ours, dense)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_position_attends_to_itself(dtype: torch.dtype) -> None:
    inputs, grad = random_inputs((2, 1, 1, 1, 32), dtype)
    out, grad_q, grad_k, grad_v = with_gradients(
        partial(favor_attention, projection_MK=torch.randn(17, 32)), inputs, grad
    )
    bound = {FP32: 1e-5, FP16: 1e-3, BF16: 1e-2}[dtype]
    assert relative_rms(out, inputs[2]) <= bound
    assert relative_rms(grad_v, grad) <= bound
    # Their true gradients are zero.
    assert max(float(grad_q.abs().max()), float(grad_k.abs().max())) <= bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_count_as_often_as_their_weights_say(dtype: torch.dtype) -> None:
    inputs, grad = random_inputs((2, 2, 12, 60, 32), dtype)
    weight = torch.randint(0, 4, (2, 60)) * 0.8
    assert_as_exact_as_the_reference(*twin_low_exact(inputs, grad, torch.randn(40, 32), weight))


@pytest.mark.parametrize(
    ("scale", "bound"),
    [pytest.param(0.1, 1e-5, id="even"), pytest.param(10.0, 2e-4, id="extreme")],
)
def test_logits_small_and_large(scale: float, bound: float) -> None:
    """Exponents reach +-1,000 in the second case, where float32 itself keeps 1e-4 of an exponential."""
    inputs, grad = random_inputs((1, 2, 20, 50, 32), FP32, scale)
    ours, low, exact = twin_low_exact(inputs, grad, torch.randn(40, 32))
    assert relative_rms(ours[0], exact[0]) <= 1e-5
    for actual, torch_own, expected in zip(ours[1:], low[1:], exact[1:], strict=True):
        if float(expected.abs().max()) > 1e-30:
            assert relative_rms(actual, expected) <= max(bound, 2 * relative_rms(torch_own, expected))


# What bfloat16 inputs run, which the interpreter cannot: its tiles and its float16 operands, on float32 inputs that
# hold bfloat16's numbers. Sums are float32's; the weights of bfloat16's are tested by themselves below.
def run_as_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    tile_for = tiles.tile_for
    monkeypatch.setattr(tiles, "tile_for", lambda kernel, _, *more: tile_for(kernel, BF16, *more))
    for module in (tiles, kernel):
        monkeypatch.setattr(module, "operand_dtype", lambda dtype: torch.float16)


# Queries and keys of 1.5 and 2 have exponents of 10 and more, and few positions with most of the weight: there the
# projection's rounding shows, and gradients are small differences.
@interpreter_only
@pytest.mark.parametrize(
    ("shape", "features", "scale"),
    [
        pytest.param((1, 2, 70, 200, 64), 266, 1.0, id="cells1-len70of200-d64-m266"),
        pytest.param((1, 2, 70, 200, 64), 266, 1.5, id="cells1-len70of200-d64-m266-large"),
        pytest.param((1, 2, 70, 200, 64), 266, 2.0, id="cells1-len70of200-d64-m266-larger"),
        pytest.param((2, 1, 130, 130, 32), 110, 0.5, id="cells2-len130-d32-m110-small"),
        pytest.param((2, 1, 130, 130, 32), 110, 1.5, id="cells2-len130-d32-m110-large"),
        pytest.param((2, 1, 130, 130, 16), 44, 1.5, id="cells2-len130-d16-m44-large"),
    ],
)
def test_operands_of_bfloat16_inputs_are_exact_enough(
    monkeypatch: pytest.MonkeyPatch, shape: Shape, features: int, scale: float
) -> None:
    run_as_bfloat16(monkeypatch)
    inputs, grad = random_inputs(shape, BF16, scale)
    projection = torch.randn(features, shape[-1])
    ours, _, exact = twin_low_exact([x.float() for x in inputs], grad.float(), projection)
    low = with_gradients(partial(reference.favor_attention, projection_MK=projection), inputs, grad)
    for actual, torch_own, expected in zip(ours, low, exact, strict=True):
        assert relative_rms(actual.bfloat16(), expected) <= 2 * relative_rms(torch_own, expected)


@triton.jit
def weighted_sums_kernel(weight_ptr, rows_ptr, sums_ptr, totals_ptr, columns_ptr, SIZE: tl.constexpr) -> None:  # type: ignore[no-untyped-def]
    place = tl.arange(0, SIZE)
    place_MN = place[:, None] * SIZE + place[None, :]
    rows_NK, weight_MN = tl.load(rows_ptr + place_MN), tl.load(weight_ptr + place_MN)
    ones = as_columns(tl.full([SIZE], 1.0, tl.float32), rows_NK, "tf32")
    sums_MK, totals = tl.zeros([SIZE, SIZE], tl.float32), zero_sums(SIZE, "tf32")
    sums_MK, totals = add_weighted(sums_MK, totals, weight_MN, rows_NK, ones)
    tl.store(sums_ptr + place_MN, sums_MK)
    tl.store(totals_ptr + place, sums_as_column(totals, "tf32"))
    sums_KM = add_weighted_columns(tl.zeros([SIZE, SIZE], tl.float32), tl.trans(weight_MN), rows_NK, "tf32")
    tl.store(columns_ptr + place_MN, sums_KM)


def test_weights_of_half_precision_rows_are_not_rounded_to_it() -> None:
    """float16 here, bfloat16 on a GPU too: alone they would round by 2^-12 and 2^-9."""
    for dtype in (FP16, *([BF16] if DEVICE == "cuda" else [])):
        weight, rows = torch.rand(32, 32), torch.randn(32, 32).to(dtype)
        sums, totals, columns = torch.empty(32, 32), torch.empty(32), torch.empty(32, 32)
        weighted_sums_kernel[(1,)](weight, rows, sums, totals, columns, SIZE=32)
        expected = weight.double() @ rows.double()
        assert relative_rms(sums, expected) <= 2**-17
        assert relative_rms(columns, expected.T) <= 2**-17
        assert relative_rms(totals, weight.double().sum(1)) <= 2**-17


# numpy, which interprets the kernels, warns of NaN.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_cell_does_not_depend_on_its_company_nor_on_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, _ = random_inputs((3, 2, 50, 100, 16), FP32)
    inputs[1][0] *= 10  # a neighbour with far larger keys
    inputs[1][2, 1, 3, 4] = torch.nan  # and one with a NaN
    projection = torch.randn(20, 16)
    alone = favor_attention(*(x[1:2] for x in inputs), projection)
    monkeypatch.setattr(tiles, "LEAST_POSITIONS", 20)
    assert tiles.splits(6, 100, tiles.SINGLE["key_sums"][16]) == (4, 32)
    together = favor_attention(*inputs, projection)
    assert relative_rms(together[1:2], alone) <= 1e-6
    assert torch.equal(favor_attention(*inputs, projection)[:2], together[:2])
    assert together[2].isnan().any(-1).any()
    assert not together[:2].isnan().any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("argument", range(3), ids=["query", "key", "value"])
def test_a_nan_comes_out(argument: int) -> None:
    inputs, _ = random_inputs((1, 1, 20, 20, 16), FP32)
    inputs[argument][0, 0, 3, 4] = torch.nan
    assert favor_attention(*inputs, torch.randn(20, 16)).isnan().any()


def test_ops_and_their_compilation() -> None:
    inputs, grad = random_inputs((1, 2, 5, 18, 16), FP32)
    projection, weight = torch.randn(20, 16), torch.rand(1, 18)
    op = partial(favor_attention, projection_MK=projection, key_weight_CP=weight)
    assert_compiles_whole(lambda q, k, v: op(q, k, v), inputs, grad)
    torch.library.opcheck(kernel._forward, (*(x.requires_grad_() for x in inputs), projection, weight))
    kinds = ("test_schema", "test_faketensor")
    torch.library.opcheck(kernel._forward, (*inputs, projection, None), test_utils=kinds)
    with torch.no_grad():
        saved = kernel._forward(*inputs, projection, weight)[1:]
        torch.library.opcheck(
            kernel._backward, (grad, *(x.detach() for x in inputs), projection, weight, *saved)
        )


def test_tuning_runs_the_pass_with_a_tile_of_its_own() -> None:
    batch = Batch(16, FP32, DEVICE, cells=1, heads=1, positions=20)
    for name in NAMES:
        batch.work(name, tiles.Tile(16, 16, 8, 1))()


@pytest.mark.parametrize("shape", [(0, 2, 5, 5, 16), (2, 2, 0, 5, 16)], ids=["cells0", "queries0"])
def test_nothing_to_do_launches_nothing(shape: Shape) -> None:
    inputs, grad = random_inputs(shape, FP32)
    out, *grads = with_gradients(partial(favor_attention, projection_MK=torch.randn(20, 16)), inputs, grad)
    assert out.shape == grad.shape
    assert all(not x.any() for x in grads)


@pytest.mark.parametrize(
    ("features", "head_dim"), [(621, 64), (48, 128)], ids=["features621-d64", "features48-d128"]
)
def test_what_the_kernels_are_too_small_for_takes_the_reference(features: int, head_dim: int) -> None:
    inputs, _ = random_inputs((1, 1, 4, 4, head_dim), FP32)
    projection = torch.randn(features, head_dim)
    expected = reference.favor_attention(*inputs, projection)
    assert torch.equal(favor_attention(*inputs, projection), expected)
