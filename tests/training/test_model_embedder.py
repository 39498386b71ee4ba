"""Embedder: one result a cell, whoever shares the batch, in bounded memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cellfoundry_data.batch import CellBatch
from cellfoundry_model import embedder as embedder_module
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import LoadedModel, save_model
from cellfoundry_model.embedder import Embedder
from cellfoundry_model.errors import ModelError
from cellfoundry_model.official import import_official
from cellfoundry_model.presets import PRESETS
from cellfoundry_model.tokens import tokenize

Make = Callable[..., CellBatch]
OUTPUTS = [("cell", "all", 48), ("cell", "max", 12), ("gene", "all", 10), ("expression", "all", 40)]


@pytest.fixture
def loaded(official_file: Path, model_genes: list[str], tmp_path: Path) -> LoadedModel:
    return import_official(official_file, tmp_path / "model", vocab_genes=model_genes)


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    torch.manual_seed(0)
    genes = tuple(f"G{index}" for index in range(PRESETS["tiny"].n_genes))
    return LoadedModel(CellModel(PRESETS["tiny"]).eval(), PRESETS["tiny"], genes, {})


@pytest.mark.parametrize(("output", "pool", "width"), OUTPUTS)
def test_result_is_the_models_in_the_callers_order(
    loaded: LoadedModel, random_cells: Make, output: str, pool: str, width: int
) -> None:
    embedder, batch = Embedder(loaded, max_tokens=30), random_cells(9, seed=3)
    ours = embedder.encode(batch, output=output, pool=pool, target="f1")
    assert ours.dtype == np.float32
    assert ours.shape[-1] == embedder.width(output, pool) == width
    tokens = tokenize(batch, n_genes=40, target="f1")
    value, position, cu_seqlens = (
        torch.from_numpy(x) for x in (tokens.value_N, tokens.position_N, tokens.cu_seqlens)
    )
    model = loaded.model
    with torch.no_grad():
        if output == "cell":
            expected = model.cell_embedding(value, position, cu_seqlens, tokens.max_seqlen, pool)
        else:
            encoded = model.encode_tokens(value, position, cu_seqlens, tokens.max_seqlen)
            expected = model.decode(encoded, position, cu_seqlens)[:, :40]
            expected = model.expression(expected) if output == "expression" else expected
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("output", "pool", "width"), OUTPUTS)
def test_company_and_order_do_not_matter(
    loaded: LoadedModel, random_cells: Make, output: str, pool: str, width: int
) -> None:
    batch = random_cells(12, density=0.5, seed=5)
    embedder = Embedder(loaded, max_tokens=100)
    together = embedder.encode(batch, output=output, pool=pool)
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_allclose(
        embedder.encode(batch.select(order), output=output, pool=pool), together[order], rtol=0, atol=1e-5
    )
    for cell in range(12):
        alone = embedder.encode(batch.select(np.array([cell])), output=output, pool=pool)
        np.testing.assert_allclose(alone[0], together[cell], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("output", "pool", "width"), OUTPUTS)
def test_cells_without_counts_are_nan_and_harm_no_one(
    loaded: LoadedModel, cells_from_dense: Make, output: str, pool: str, width: int
) -> None:
    matrix = np.random.default_rng(0).poisson(1.0, (5, 40))
    matrix[[0, 3]] = 0
    embedder = Embedder(loaded)
    result = embedder.encode(cells_from_dense(matrix), output=output, pool=pool)
    assert np.isnan(result[[0, 3]]).all()
    filled = embedder.encode(cells_from_dense(matrix[[1, 2, 4]]), output=output, pool=pool)
    np.testing.assert_allclose(result[[1, 2, 4]], filled, rtol=0, atol=1e-5)


def test_only_empty_cells_and_no_cells(loaded: LoadedModel, cells_from_dense: Make) -> None:
    embedder = Embedder(loaded)
    assert np.isnan(embedder.encode(cells_from_dense(np.zeros((2, 40))))).all()
    assert embedder.encode(cells_from_dense(np.zeros((0, 40))), output="gene").shape == (0, 40, 10)


def test_totals_follow_their_cells(loaded: LoadedModel, random_cells: Make) -> None:
    batch, totals = random_cells(6), np.arange(1, 7) * 500.0
    embedder = Embedder(loaded, max_tokens=20)
    together = embedder.encode(batch, pre_normalized="A", totals=totals)
    for cell in range(6):
        alone = embedder.encode(
            batch.select(np.array([cell])), pre_normalized="A", totals=totals[cell : cell + 1]
        )
        np.testing.assert_allclose(alone[0], together[cell], rtol=0, atol=1e-5)


def test_decoder_runs_few_cells_at_a_time(
    loaded: LoadedModel, random_cells: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    decode = loaded.model.decode
    monkeypatch.setattr(loaded.model, "decode", lambda *a: seen.append(len(a[2]) - 1) or decode(*a))
    per_cell = embedder_module.decoder_cell_bytes(loaded.config)
    monkeypatch.setattr(embedder_module, "DECODER_BYTES", 3 * per_cell)
    Embedder(loaded).encode(random_cells(8), output="expression")
    assert seen == [3, 3, 2]


def test_published_shape_decodes_one_cell_at_a_time_in_about_a_gigabyte() -> None:
    assert 0.8e9 < embedder_module.decoder_cell_bytes(PRESETS["100m"]) < embedder_module.DECODER_BYTES


def test_bf16_stays_near_fp32_and_gives_float32(loaded: LoadedModel, random_cells: Make) -> None:
    batch = random_cells(6)
    for output in ("cell", "gene", "expression"):
        exact = Embedder(loaded).encode(batch, output=output)
        half = Embedder(loaded, precision="bf16").encode(batch, output=output)
        assert half.dtype == np.float32
        assert np.abs(half - exact).max() > 0
        # bfloat16 keeps 8 bits: 0.4 % a product, and a few layers of them.
        assert np.sqrt(np.mean((half - exact) ** 2)) < 0.03 * np.sqrt(np.mean(exact**2)), output


def test_eighteen_thousand_genes_embed_in_bounded_memory(tiny: LoadedModel, random_cells: Make) -> None:
    """One attention matrix of this cell alone would be 18,002^2 x 2 heads x 4 bytes = 2.6 GB."""
    genes = tiny.config.n_genes
    batch = random_cells(1, genes=genes, density=18_000 / genes)
    assert batch.nnz > 17_500
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    result = Embedder(tiny).encode(batch, input_type="bulk", bulk_median=5e4)
    assert np.isfinite(result).all()
    assert time.monotonic() - start < 30
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 600e6


def test_a_saved_model_embeds_alike(
    loaded: LoadedModel, model_genes: list[str], random_cells: Make, tmp_path: Path
) -> None:
    save_model(loaded.model, model_genes, tmp_path / "copy", {})
    batch = random_cells(3)
    embedder = Embedder(str(tmp_path / "copy"))
    assert embedder.vocab_genes == tuple(model_genes)
    np.testing.assert_array_equal(embedder.encode(batch), Embedder(loaded).encode(batch))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "fp16"}, "use fp32 or bf16"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        pytest.param(
            {"device": "cuda"},
            "device 'cuda' cannot be used here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
    ],
)
def test_unusable_options_are_named(loaded: LoadedModel, options: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        Embedder(loaded, **options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"output": "gene_batch"}, "use cell, gene or expression"), ({"pool": "mean"}, "use all or max")],
)
def test_unknown_outputs_are_named(
    loaded: LoadedModel, random_cells: Make, options: dict[str, str], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        Embedder(loaded).encode(random_cells(1), **options)
