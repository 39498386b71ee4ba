"""value_embedding, in Triton's interpreter, against the float64 reference (run by ../test_triton_interpreter.py)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from twins import DTYPES, assert_as_exact_as_the_reference, with_gradients

from cellfoundry_kernels import value_embedding
from cellfoundry_kernels.embedding import reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "bins", "width"),
    [(70, 100, 40), (1, 10, 8)],
    ids=["tokens70-bins100-d40", "tokens1-bins10-d8"],
)
def test_value_embedding(dtype: torch.dtype, tokens: int, bins: int, width: int) -> None:
    shapes = [(bins, 1), (bins,), (bins, bins), (bins,), (bins, width)]
    weights = [torch.randn(shape).to(dtype) / (bins**0.5 if shape == (bins, bins) else 1) for shape in shapes]
    inputs = [10 * torch.rand(tokens), *weights]
    grad = torch.randn(tokens, width).to(dtype)

    ours = with_gradients(partial(value_embedding, alpha=0.7), inputs, grad)
    torch_op = partial(reference.value_embedding, alpha=0.7)
    low = with_gradients(torch_op, inputs, grad)
    exact = with_gradients(torch_op, [x.double() for x in inputs], grad)
    if dtype == torch.float32:
        assert_as_exact_as_the_reference(ours, low, exact)
    else:  # backward is the reference itself there
        assert_as_exact_as_the_reference(ours[:1], low[:1], exact[:1])


def test_nothing_to_do_launches_nothing() -> None:
    weights = [torch.randn(shape) for shape in ((16, 1), (16,), (16, 16), (16,), (16, 8))]
    assert partial(value_embedding, alpha=1.0)(torch.empty(0), *weights).shape == (0, 8)
