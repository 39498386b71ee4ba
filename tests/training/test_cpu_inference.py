"""The CPU's layers for inference compute what the model's own do."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cellfoundry_data.batch import CellBatch
from cellfoundry_kernels.favor.cpu import CHUNK, favor_attention_without_grad
from cellfoundry_kernels.favor.reference import favor_attention
from cellfoundry_kernels.varlen import cpu as varlen_cpu
from cellfoundry_kernels.varlen import reference as varlen_reference
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.cpu_inference import packed_for_cpu
from cellfoundry_model.decoder import draw_projection
from cellfoundry_model.packed_linear import PackedLinear, can_pack
from cellfoundry_model.tokens import tokenize

CONFIG = ModelConfig(
    n_genes=1100,
    bins=8,
    bin_alpha=1.0,
    mask_token_id=102,
    pad_token_id=103,
    encoder_width=48,
    encoder_depth=2,
    encoder_heads=3,
    decoder_width=20,
    decoder_depth=2,
    decoder_heads=2,
    decoder_head_dim=12,
    favor_features=30,
)
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if not can_pack(request.param):
        pytest.skip(f"this processor does not pack {request.param}")
    return request.param


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def model() -> CellModel:
    torch.manual_seed(0)
    return CellModel(CONFIG).eval()


@pytest.fixture
def tokens(random_cells: Callable[..., CellBatch]) -> tuple[Tensor, Tensor, Tensor, int]:
    tokens = tokenize(random_cells(7, seed=1), n_genes=CONFIG.n_genes)
    numbers = (torch.from_numpy(x) for x in (tokens.value_N, tokens.position_N, tokens.cu_seqlens))
    return (*numbers, tokens.max_seqlen)


@torch.inference_mode()
def test_all_outputs_are_the_models(
    model: CellModel, tokens: tuple[Tensor, Tensor, Tensor, int], dtype: torch.dtype
) -> None:
    bar = 1e-5 if dtype == torch.float32 else 1e-2  # bfloat16 keeps 8 bits of every factor
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    packed = packed_for_cpu(model, dtype)
    value_N, position_N, cu_seqlens, longest = tokens
    for pool in ("all", "max"):
        found = packed.cell_embedding(value_N, position_N, cu_seqlens, longest, pool)
        expected = model.cell_embedding(value_N, position_N, cu_seqlens, longest, pool)
        assert found.dtype == torch.float32
        assert relative_error(found, expected) < bar
    found = packed.gene_embedding(value_N, position_N, cu_seqlens, longest)
    expected = model.gene_embedding(value_N, position_N, cu_seqlens, longest)
    assert relative_error(found, expected) < bar
    assert packed.encoder is not model.encoder
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("rows", [1, 37, 1024, 2500])
@torch.inference_mode()
def test_packed_linear_of_any_number_of_rows(dtype: torch.dtype, activation: str, rows: int) -> None:
    torch.manual_seed(0)
    linear, x_RI = nn.Linear(24, 40), torch.randn(rows, 24)
    expected = {"none": nn.Identity(), "relu": nn.ReLU(), "gelu": nn.GELU()}[activation](
        linear.double()(x_RI.double())
    )
    found = PackedLinear(linear.float(), dtype)(x_RI.to(dtype), activation)
    assert found.dtype == dtype
    assert relative_error(found, expected) < (1e-6 if dtype == torch.float32 else 1e-2)


@given(
    cells=st.integers(1, 3),
    positions=st.sampled_from([1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 77]),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([6, 8, 20]),
    spread=st.floats(0.1, 4),
    rising=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=25)
@torch.inference_mode()
def test_chunked_favor_is_the_reference(
    cells: int, positions: int, heads: int, head_dim: int, spread: float, rising: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    projection_MK = draw_projection(2 * head_dim + 3, head_dim)
    q, k, v = (spread * torch.randn(cells, positions, heads, head_dim) for _ in range(3))
    if rising:  # so that the stabiliser grows from chunk to chunk
        k = k * torch.linspace(0.1, 1, positions)[:, None, None]
    found = favor_attention_without_grad(q, k, v, projection_MK)
    expected = favor_attention(*(x.double().transpose(1, 2) for x in (q, k, v)), projection_MK.double())
    assert relative_error(found, expected.transpose(1, 2)) < 1e-5


@given(
    lengths=st.lists(
        st.sampled_from([0, 1, 2, 65, varlen_cpu.SHORT_CELL, varlen_cpu.SHORT_CELL + 1]), max_size=5
    ),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=25)
@torch.inference_mode()
def test_attention_without_gradients_is_the_reference(
    lengths: list[int], dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    q, k, v = torch.randn(3, sum(lengths), 2, 16).to(dtype)
    found = varlen_cpu.varlen_attention_without_grad(q, k, v, cu_seqlens, 0.25)
    expected = varlen_reference.varlen_attention(q.double(), k.double(), v.double(), cu_seqlens, 0.25)
    assert (found.shape, found.dtype) == (v.shape, dtype)
    if sum(lengths):
        assert relative_error(found, expected) < (1e-6 if dtype == torch.float32 else 1e-2)
