"""favor_attention's reference: gradients, key weights, the sums that its kernel streams, and what it refuses."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from cellfoundry_kernels import favor_attention
from cellfoundry_kernels.favor.reference import FAVOR_EPSILON


def random_inputs(queries: int, keys: int, head_dim: int = 8, scale: float = 1.0) -> list[Tensor]:
    shapes = [(2, 3, positions, head_dim) for positions in (queries, keys, keys)]
    return [scale * torch.randn(shape, dtype=torch.float64) for shape in shapes]


def test_gradients_with_fewer_queries_and_with_weights() -> None:
    # No gradient passes through the maxima, so they must not be touched: inputs small, one query and key apart.
    q, k, v = random_inputs(3, 4)
    projection = torch.randn(5, 8, dtype=torch.float64)
    weight = torch.rand(2, 4)

    def detached_maximum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The formula with its maxima held where they are for the unperturbed inputs."""
        root = 8**-0.25

        def exponential(z: Tensor, stabilizer: Tensor) -> Tensor:
            dash = root * z @ projection.T
            return (
                dash - 0.5 * root**2 * z.square().sum(-1, keepdim=True) - stabilizer
            ).exp() + FAVOR_EPSILON

        phi_q = exponential(q, s_q)
        phi_k = exponential(k, s_k) * weight[:, None, :, None].double()
        return phi_q @ (phi_k.mT @ v) / (phi_q @ phi_k.sum(2)[..., None])

    s_q = (8**-0.25 * q @ projection.T).amax(-1, keepdim=True)
    s_k = (8**-0.25 * k @ projection.T).amax((1, 2, 3), keepdim=True)
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    theirs = [x.clone().requires_grad_() for x in (q, k, v)]
    out = favor_attention(*ours, projection, key_weight_CP=weight)
    expected = detached_maximum(*theirs)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    for actual, wanted in zip(
        torch.autograd.grad(out, ours, grad), torch.autograd.grad(expected, theirs, grad), strict=True
    ):
        torch.testing.assert_close(actual, wanted)
    assert torch.autograd.gradcheck(detached_maximum, theirs)


def test_values_pass_gradcheck() -> None:
    q, k, v = random_inputs(3, 4)
    op = partial(favor_attention, q, k, projection_MK=torch.randn(5, 8, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda v: op(v), v.requires_grad_())


def test_a_weight_counts_as_that_many_equal_keys() -> None:
    q, k, v = random_inputs(5, 4)
    projection = torch.randn(9, 8, dtype=torch.float64)
    counts = torch.tensor([1, 3, 2, 1])
    repeated = favor_attention(q, k.repeat_interleave(counts, 2), v.repeat_interleave(counts, 2), projection)
    weighted = favor_attention(q, k, v, projection, key_weight_CP=counts.float().expand(2, 4))
    torch.testing.assert_close(weighted, repeated)


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0], ids=["small", "unit", "extreme"])
def test_sums_streamed_without_a_maximum_give_the_same(scale: float) -> None:
    """What the kernel does: sums of ``exp(c P z - c^2 |z|^2 / 2)``, scaled by ``exp(-s)`` when s is known."""
    q, k, v = random_inputs(6, 50, scale=scale)
    v = v / scale
    projection = torch.randn(9, 8, dtype=torch.float64)
    root = 8**-0.25
    v1 = torch.nn.functional.pad(v, (0, 1), value=1.0)
    stabilizer = torch.full((2, 1, 1, 1), -torch.inf, dtype=torch.float64)
    context = torch.zeros(2, 3, 9, 9, dtype=torch.float64)
    for block in range(0, 50, 16):
        dash = root * k[:, :, block : block + 16] @ projection.T
        half_norm = 0.5 * root**2 * k[:, :, block : block + 16].square().sum(-1, keepdim=True)
        # Completing the square: no exponent passes half a feature's squared norm.
        assert (dash - half_norm <= 0.5 * projection.square().sum(-1) + 1e-9).all()
        stabilizer = torch.maximum(stabilizer, dash.amax((1, 2, 3), keepdim=True))
        context += (dash - half_norm).exp().mT @ v1[:, :, block : block + 16]
    context = context * (-stabilizer).exp() + FAVOR_EPSILON * v1.sum(2, keepdim=True)
    dash = root * q @ projection.T
    half_norm = 0.5 * root**2 * q.square().sum(-1, keepdim=True)
    phi_q = (dash - half_norm - dash.amax(-1, keepdim=True)).exp() + FAVOR_EPSILON
    out = phi_q @ context
    torch.testing.assert_close(favor_attention(q, k, v, projection), out[..., :-1] / out[..., -1:])


def test_inputs_that_do_not_fit_are_refused() -> None:
    q, k, v = random_inputs(3, 4)
    projection = torch.randn(5, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="only the number of queries may differ"):
        favor_attention(q, k, v[:, :, :3], projection)
    with pytest.raises(ValueError, match="only the number of queries may differ"):
        favor_attention(q, k, v.float(), projection)
    with pytest.raises(ValueError, match="as many channels"):
        favor_attention(q, k, v, projection[:, :7])
    with pytest.raises(ValueError, match="got 0 keys"):
        favor_attention(q, k[:, :, :0], v[:, :, :0], projection)
    with pytest.raises(ValueError, match="one for each of 2 cells x 4 positions"):
        favor_attention(q, k, v, projection, key_weight_CP=torch.ones(2, 3))
