"""masked_mse, in Triton's interpreter, against the float64 reference (run by ../test_triton_interpreter.py)."""

from __future__ import annotations

import pytest
import torch
from twins import DTYPES, assert_as_exact_as_the_reference, gpu_only, with_gradients

from cellfoundry_kernels import masked_mse
from cellfoundry_kernels.loss import reference
from cellfoundry_kernels.loss.kernel import masked_mse as registered
from cellfoundry_kernels.loss.kernel import masked_mse_backward


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "positions",
    [
        pytest.param(1, id="x1"),
        pytest.param(1_024, id="x1024"),
        pytest.param(5_000, id="x5000"),
        pytest.param(3_000_000, id="cells10000-x3000000", marks=gpu_only),
    ],
)
def test_masked_mse_and_both_gradients(dtype: torch.dtype, positions: int) -> None:
    # Predictions may be half precision, targets never are; strided, as a column of a matrix would be.
    inputs = [torch.randn(positions, 2).to(dtype)[:, 0], 3 * torch.randn(positions)]
    grad = torch.tensor(0.7)
    ours = with_gradients(masked_mse, inputs, grad)
    low = with_gradients(reference.masked_mse, inputs, grad)
    exact = with_gradients(reference.masked_mse, [x.double() for x in inputs], grad)
    assert [x.dtype for x in ours] == [torch.float32, dtype, torch.float32]
    assert_as_exact_as_the_reference(ours, low, exact)


def test_half_precision_is_summed_in_float32() -> None:
    # The sum, a million, is beyond float16.
    assert masked_mse(torch.full((2**18,), 2.0, dtype=torch.float16), torch.zeros(2**18)) == 4


def test_nan_comes_out_where_it_went_in() -> None:
    prediction = torch.randn(2_000, requires_grad=True)
    target = torch.randn(2_000)
    target[1_500] = torch.nan
    loss = masked_mse(prediction, target)
    loss.backward()
    assert loss.isnan()
    assert prediction.grad is not None
    assert prediction.grad.isnan().nonzero().tolist() == [[1_500]]


def test_nothing_chosen() -> None:
    prediction = torch.empty(0, requires_grad=True)
    loss = masked_mse(prediction, torch.empty(0))
    loss.backward()
    assert loss == 0
    assert prediction.grad is not None
    assert prediction.grad.shape == (0,)


def test_registered_ops() -> None:
    prediction, target = torch.randn(5, requires_grad=True), torch.randn(5)
    torch.library.opcheck(registered, (prediction, target))
    torch.library.opcheck(masked_mse_backward, (torch.tensor(2.0), prediction.detach(), target))


def test_compiles_into_one_graph() -> None:
    inputs = [torch.randn(50), torch.randn(50)]
    compiled = torch.compile(masked_mse, fullgraph=True, backend="aot_eager")
    grad = torch.tensor(1.0)
    for actual, expected in zip(
        with_gradients(compiled, inputs, grad), with_gradients(masked_mse, inputs, grad), strict=True
    ):
        assert torch.equal(actual, expected)
