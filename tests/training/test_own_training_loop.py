"""The encoder inside someone else's training loop, as docs/finetuning.md shows: plain torch, and Lightning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch import nn

import cellfoundry as cf
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import load_model, save_model
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.errors import ModelError

GENES, CELLS = 40, 64
DOCS = Path(__file__).resolve().parents[2] / "docs" / "finetuning.md"
CONFIG = ModelConfig(
    n_genes=GENES,
    bins=6,
    bin_alpha=1.0,
    mask_token_id=102,
    pad_token_id=103,
    encoder_width=16,
    encoder_depth=2,
    encoder_heads=2,
    decoder_width=8,
    decoder_depth=1,
    decoder_heads=1,
    decoder_head_dim=8,
    favor_features=8,
)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(CellModel(CONFIG), [f"GENE{gene}" for gene in range(GENES)], tmp_path / "models" / "cell", {})
    return tmp_path / "models" / "cell"


@pytest.fixture
def adata() -> AnnData:
    rng = np.random.default_rng(0)
    kind = np.arange(CELLS) % 2
    counts = rng.poisson(np.where(kind[:, None] == np.arange(GENES) % 2, 20.0, 1.0)).astype(np.float32)
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(np.array(["alpha", "beta"])[kind]), "age": rng.uniform(20, 80, CELLS)},
        index=[f"cell{row}" for row in range(CELLS)],
    )
    var = pd.DataFrame(index=[f"GENE{gene}" for gene in range(GENES)])
    return AnnData(sp.csr_matrix(counts), obs=obs, var=var)


def snippets(heading: str) -> str:
    """The Python code under a heading of the documentation."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert section, heading
    return "\n".join(re.findall(r"```python\n(.*?)```", section[1], re.DOTALL))


def run_snippets(
    heading: str, adata: AnnData, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Run a heading's code as it stands, in ``folder``, where ``models/cell`` is, with ``adata`` in scope."""
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {"adata": adata, "__name__": "snippet"}
    exec(compile(snippets(heading), str(DOCS), "exec"), scope)
    return scope


def test_the_module_gives_what_encode_gives(model_dir: Path, adata: AnnData) -> None:
    model = cf.load(model_dir)
    tokens = model.tokens(adata)
    assert len(tokens) == CELLS
    rows = [5, 0, 63, 17]
    for pool, width in (("all", 64), ("max", 16)):
        encoder = model.encoder(pool)
        assert encoder.width == width
        vectors = encoder(tokens[rows]).detach().numpy()
        np.testing.assert_allclose(vectors, model.encode(adata, pool=pool)[rows], atol=1e-5)
    with pytest.raises(ModelError, match="pool is 'mean'"):
        model.encoder("mean")


def test_every_parameter_gets_a_gradient(model_dir: Path, adata: AnnData) -> None:
    model = cf.load(model_dir)
    encoder = model.encoder()
    encoder(model.tokens(adata)[range(8)]).square().sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


def test_a_plain_loop_of_the_documentation(
    model_dir: Path, adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_model(model_dir).info["weights_sha256"]
    scope = run_snippets("Your own training loop", adata, tmp_path, monkeypatch)
    module = scope["module"]
    called = module(scope["tokens"][range(CELLS)]).argmax(1).numpy()
    assert (called == adata.obs["cell_type"].cat.codes).mean() > 0.9
    # What was trained is what encode computes with, and what was saved.
    trained = scope["model"].encode(adata)
    assert not np.allclose(trained, cf.load(model_dir).encode(adata), atol=1e-3)
    np.testing.assert_allclose(cf.load(tmp_path / "models" / "mine").encode(adata), trained, atol=1e-5)
    assert load_model(tmp_path / "models" / "mine").info["weights_sha256"] != before


# Advice of Lightning's that does not fit 64 cells in memory, and its use of a name that torch 2.13 renamed.
@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
    "ignore:.*LeafSpec.* is deprecated:FutureWarning",
)
def test_lightning_of_the_documentation(
    model_dir: Path, adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = run_snippets("Lightning", adata, tmp_path, monkeypatch)
    module = scope["module"]
    assert isinstance(module, nn.Module)
    assert scope["trainer"].state.finished
    called = module(scope["tokens"][range(CELLS)]).argmax(1).numpy()
    assert (called == adata.obs["cell_type"].cat.codes).mean() > 0.9


def test_the_python_api_of_the_documentation(
    model_dir: Path, adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = run_snippets("From Python", adata, tmp_path, monkeypatch)
    assert scope["predicted"]["prediction"].tolist() == adata.obs["cell_type"].tolist()
    assert (tmp_path / "models" / "typed" / "report.html").read_text().startswith("<!doctype html>")
