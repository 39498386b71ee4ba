"""value_embedding, in Triton's interpreter, against the float64 reference (run by ../test_triton_interpreter.py)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from twins import (
    DTYPES,
    assert_as_exact_as_the_reference,
    assert_compiles_whole,
    gpu_only,
    interpreter_only,
    relative_rms,
    with_gradients,
)

from cellfoundry_bench.kernels.inputs import embedding_weights, expression_values
from cellfoundry_kernels import value_embedding
from cellfoundry_kernels.embedding import backward, backward_exact, forward, kernel, reference

ALPHA, MASK, PAD, POSITIONS = 0.7, 102.0, 103.0, 20
Op = Callable[..., Tensor]


def values_of(tokens: int) -> Tensor:
    """Values of cells, a mask and a pad value among them."""
    value_N = expression_values(tokens)
    value_N[1::7], value_N[2::11] = MASK, PAD
    return value_N


def in_full(op: Op, position_N: Tensor) -> Op:
    """``op`` with mask and pad rows and positions, of tensors in one row."""

    def call(*inputs: Tensor) -> Tensor:
        *plain, mask_1D, pad_1D, table_PD = inputs
        rows = {"mask_1D": mask_1D, "pad_1D": pad_1D, "mask_token_id": MASK, "pad_token_id": PAD}
        return op(*plain, ALPHA, **rows, position_table_PD=table_PD, position_N=position_N)

    return call


def full_inputs(tokens: int, bins: int, width: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Tensors of ``in_full``, and positions, of which every one is asked for by several tokens or none."""
    rows = [torch.randn(shape, width).to(dtype) for shape in (1, 1, POSITIONS)]
    return [values_of(tokens), *embedding_weights(bins, width, dtype), *rows], torch.randint(
        0, POSITIONS - 1, (tokens,)
    )


def assert_exact(ours: list[Tensor], low: list[Tensor], exact: list[Tensor]) -> None:
    """As the helper, with values' gradients held to the weights' dtype: values are float32 in half precision too."""
    assert [x.dtype for x in ours] == [x.dtype for x in low]
    ours[1], low[1] = ours[1].to(ours[0].dtype), low[1].to(low[0].dtype)
    assert_as_exact_as_the_reference(ours, low, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "bins", "width"),
    [
        pytest.param(300, 100, 40, id="tokens300-bins100-d40"),
        pytest.param(12, 15, 7, id="tokens12-bins15-d7"),
        pytest.param(5_000, 100, 768, id="tokens5000-bins100-d768", marks=gpu_only),
    ],
)
def test_value_embedding(dtype: torch.dtype, tokens: int, bins: int, width: int) -> None:
    inputs, position_N = full_inputs(tokens, bins, width, dtype)
    grad = torch.randn(tokens, width).to(dtype)
    ours = with_gradients(in_full(value_embedding, position_N), inputs, grad)
    torch_op = in_full(reference.value_embedding, position_N)
    low = with_gradients(torch_op, inputs, grad)
    exact = with_gradients(torch_op, [x.double() for x in inputs], grad)
    assert_exact(ours, low, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_value_without_rows_of_its_own_or_a_position(dtype: torch.dtype) -> None:
    inputs, grad = [torch.tensor([MASK / 20]), *embedding_weights(10, 8, dtype)], torch.randn(1, 8).to(dtype)
    ours, low = (
        with_gradients(lambda *x, op=op: op(*x, ALPHA), inputs, grad)
        for op in (value_embedding, reference.value_embedding)
    )
    exact = with_gradients(
        lambda *x: reference.value_embedding(*x, ALPHA), [x.double() for x in inputs], grad
    )
    assert_exact(ours, low, exact)


def test_the_kernels_of_backward_are_exact_in_float32_too() -> None:
    """They run in half precision only; what they compute beyond its rounding shows in float32."""
    value_N, *weights = [values_of(450), *embedding_weights(20, 24, torch.float32)]
    table_RD, grad_ND = torch.cat([weights.pop(), torch.randn(2, 24)]), torch.randn(450, 24)
    _, *packed = kernel._forward(value_N, *weights, table_RD, None, None, ALPHA, MASK, PAD)
    (ours_BC, *ours), (wanted_BC, *wanted) = (
        module.backward(grad_ND, value_N, *packed, table_RD, ALPHA, (MASK, PAD), 20, True)
        for module in (backward, backward_exact)
    )
    ours_BC[:, 32] += ours_BC[:, 33] + ours_BC[:, 34]  # the three parts of a scalar multiply the same weight
    for columns in (slice(20), 20, 32, 35):  # mlp2's weight and bias, mlp's weight and bias
        assert relative_rms(ours_BC[:20, columns], wanted_BC[:20, columns]) <= 1e-5
    for actual, expected in zip(ours, wanted, strict=True):  # the table's, the values'
        assert relative_rms(actual, expected) <= 1e-5


# NumPy's, of the interpreter: a maximum over NaN only is what is tested.
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
def test_a_nan_comes_out_and_stays_with_its_token() -> None:
    inputs, position_N = full_inputs(9, 10, 8, torch.float16)
    inputs[0][4] = torch.nan
    position_N[6] = POSITIONS  # no such position
    is_nan = in_full(value_embedding, position_N)(*inputs).isnan()
    assert is_nan.any(1).tolist() == is_nan.all(1).tolist() == [token in (4, 6) for token in range(9)]


@pytest.mark.parametrize("capability", [80, 89], ids=["a100", "l4"])
def test_smaller_tiles_of_other_devices_give_the_same(
    monkeypatch: pytest.MonkeyPatch, capability: int
) -> None:
    inputs, position_N = full_inputs(150, 20, 300, torch.float16)
    grad = torch.randn(150, 300)
    op = in_full(value_embedding, position_N)
    wanted = with_gradients(op, inputs, grad)
    for module in (forward, backward):
        monkeypatch.setattr(module, "capability_of", lambda device: capability)
    for ours, theirs in zip(with_gradients(op, inputs, grad), wanted, strict=True):
        assert relative_rms(ours, theirs) <= 2e-3  # sums of float32 in another order, rounded to float16


def test_inputs_may_be_views_and_more_bins_than_fit_run_the_reference() -> None:
    inputs, position_N = full_inputs(10, 10, 8, torch.float32)
    strided = [torch.stack([x, x], -1)[..., 0] for x in inputs]
    op = in_full(value_embedding, position_N)
    torch.testing.assert_close(op(*strided), op(*inputs), rtol=0, atol=0)
    inputs, position_N = full_inputs(5, 128, 8, torch.float32)
    wanted = in_full(reference.value_embedding, position_N)(*inputs)
    torch.testing.assert_close(in_full(value_embedding, position_N)(*inputs), wanted, rtol=0, atol=0)


@interpreter_only
def test_a_position_table_beyond_two_to_the_31_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2^28 rows only those asked for are touched; the rest is memory that is reserved."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    inputs, position_N = full_inputs(9, 10, 8, torch.float16)
    expected = in_full(value_embedding, position_N)(*inputs)
    *plain, table_PD = inputs
    far_PD = torch.empty(2**28 + POSITIONS, 8, dtype=torch.float16)
    far_PD[2**28 :] = table_PD
    assert torch.equal(in_full(value_embedding, position_N + 2**28)(*plain, far_PD), expected)


FAR, FAR_WIDTH, BLOCK_B = 2**27, 16, 16  # so many rows of such a width have 2^31 elements


@pytest.fixture
def far_apart(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Launches become the first programs of a grid so large that a program's second tile starts ``FAR`` tokens on.

    Or those from ``first`` on. So tokens between are never touched; their memory is reserved only.
    """
    from triton.runtime.interpreter import interpreter_builder

    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)

    def in_grid(block_n: int, first: int = 0) -> None:
        def set_grid_idx(x: int, y: int, z: int) -> None:
            interpreter_builder.grid_idx = (first + x, y, z)

        def set_grid_dim(*_: int) -> None:
            interpreter_builder.grid_dim = (FAR // block_n, 1, 1)

        monkeypatch.setattr(interpreter_builder, "set_grid_idx", set_grid_idx)
        monkeypatch.setattr(interpreter_builder, "set_grid_dim", set_grid_dim)

    return in_grid


def behind_far(rows: Tensor) -> Tensor:
    """``rows`` behind ``FAR`` others, of which the first tiles are zeros."""
    memory = torch.empty(FAR + len(rows), *rows.shape[1:], dtype=rows.dtype)
    memory[:1_024], memory[FAR:] = 0, rows
    return memory


@interpreter_only
def test_a_result_beyond_two_to_the_31_elements(far_apart: Callable[..., None]) -> None:
    inputs, position_N = full_inputs(9, 10, FAR_WIDTH, torch.float16)
    expected = in_full(value_embedding, position_N)(*inputs)
    tiles = forward.forward_tiles(torch.float16, BLOCK_B, 90)
    far_N, far_position_N = behind_far(inputs[0]), behind_far(position_N)
    far_apart(tiles["BLOCK_N"])
    with torch.no_grad():
        out = in_full(value_embedding, far_position_N)(far_N, *inputs[1:])
    assert torch.equal(out[FAR:], expected)


@interpreter_only
def test_shares_and_gradients_beyond_two_to_the_31_elements(far_apart: Callable[..., None]) -> None:
    value_N, *weights = values_of(9), *embedding_weights(10, FAR_WIDTH, torch.float16)
    affine_BK, mix_BI = forward.pack(*weights[:4], BLOCK_B)
    grad_ND, dtype = torch.randn(9, FAR_WIDTH).half(), torch.float16
    tiles = backward.backward_tiles(dtype, BLOCK_B, 90, True)

    def shares(value_N: Tensor, share_NB: Tensor) -> Tensor:
        scalars = (ALPHA, MASK, PAD, len(value_N), 10, 10)
        blocks = backward.shares_tiles(dtype, BLOCK_B)
        backward.shares_kernel[(1,)](value_N, affine_BK, mix_BI, share_NB, *scalars, **blocks)
        return share_NB

    def gradients(value_N: Tensor, share_NB: Tensor, grad_ND: Tensor, bins_programs: int) -> list[Tensor]:
        """Of the discretisation by a program of so many, or (0) of the table."""
        results = [torch.zeros(len(value_N)), torch.zeros(BLOCK_B, BLOCK_B + 16), torch.zeros(10, FAR_WIDTH)]
        inputs = (value_N, share_NB, affine_BK, mix_BI, weights[4], grad_ND)
        sizes = (len(value_N), 10, FAR_WIDTH, bins_programs)
        backward.backward_kernel[(1,)](*inputs, *results, ALPHA, *sizes, **tiles)
        return [results[0][-9:], *results[1:]]

    share_NB = shares(value_N, torch.empty(9, BLOCK_B, dtype=dtype))
    expected = [gradients(value_N, share_NB, grad_ND, programs) for programs in (1, 0)]
    far_N, far_share_NB, far_grad_ND = (behind_far(x) for x in (value_N, torch.zeros_like(share_NB), grad_ND))
    block_n = backward.shares_tiles(dtype, BLOCK_B)["BLOCK_N"]
    far_apart(block_n, first=FAR // block_n)
    assert torch.equal(shares(far_N, far_share_NB)[FAR:], share_NB)
    far_apart(tiles["BLOCK_N"])
    for programs, wanted in zip((FAR // tiles["BLOCK_N"], 0), expected, strict=True):
        for ours, theirs in zip(gradients(far_N, far_share_NB, far_grad_ND, programs), wanted, strict=True):
            assert torch.equal(ours, theirs)


def test_only_what_is_needed_has_a_gradient() -> None:
    inputs, position_N = full_inputs(5, 10, 8, torch.float16)
    for index in (0, 5, 8):
        inputs[index].requires_grad_()
        in_full(value_embedding, position_N)(*inputs).sum().backward()
        assert [x.grad is not None for x in inputs] == [other == index for other in range(9)]
        inputs[index].requires_grad_(False)
        inputs[index].grad = None


@pytest.mark.parametrize("dtype", DTYPES)
def test_value_embedding_is_a_registered_op(dtype: torch.dtype) -> None:
    inputs, position_N = full_inputs(9, 10, 8, dtype)
    grad = torch.randn(9, 8).to(dtype)
    value_N, *weights, mask_1D, pad_1D, table_PD = [x.requires_grad_() for x in inputs]
    weights[-1] = torch.cat([weights[-1], mask_1D, pad_1D]).detach().requires_grad_()
    scalars = (ALPHA, MASK, PAD)
    torch.library.opcheck(kernel._forward, (value_N, *weights, table_PD, position_N, *scalars))
    detached = [x.detach() for x in (value_N, *weights)]
    _, *saved = kernel._forward(*detached, None, None, *scalars)
    for need_value in (False, True):
        arguments = (grad, detached[0], *saved, detached[-1], *scalars, 10, need_value)
        torch.library.opcheck(kernel._backward, arguments)
    assert_compiles_whole(in_full(value_embedding, position_N), inputs, grad)


def test_nothing_to_do_launches_nothing() -> None:
    inputs, position_N = full_inputs(0, 16, 8, torch.float16)
    out, *grads = with_gradients(in_full(value_embedding, position_N), inputs, torch.empty(0, 8))
    assert out.shape == (0, 8)
    assert not any(grad.any() for grad in grads)
