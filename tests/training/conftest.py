"""Small things for the tests: random checkpoints of the official format and sparse cells, and a finished run."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store.cell_keys import cell_keys
from cellfoundry_data.store.replace import replacing_store
from cellfoundry_data.store.writer import finish_store, start_store, write_shard
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_training.config import PretrainConfig, load_config
from cellfoundry_training.pretrain import PretrainResult, pretrain

GENES = 40
# No two sizes alike, and none in the ratio a constant would assume: a size taken from elsewhere would show.
ENCODER = {"hidden_dim": 12, "depth": 2, "heads": 3, "dim_head": 64, "module_type": "transformer"}
DECODER = {"hidden_dim": 10, "depth": 2, "heads": 2, "dim_head": 6, "module_type": "performer"}
STORE_GENES, STORE_CELLS = 50, 200
BINS, ENCODER_FFN, DECODER_FFN, FEATURES, ALPHA = 7, 20, 26, 9, 0.8
RUN_STEPS = 40
RUN_SETTINGS = (
    *(f"model.{side}_width=16" for side in ("encoder", "decoder")),
    *(f"model.{side}_ffn_width=32" for side in ("encoder", "decoder")),
    *("model.encoder_heads=2", "workers=2", "device=cpu", "zero_stage=1"),
    *("batch_cells=4", "gradient_accumulation=2", "max_seconds=null", f"max_steps={RUN_STEPS}"),
    *("validation_share=0.2", "eval_every_steps=20", "probe_column=kind"),
    *("checkpoint_every_steps=5", "log_cells=true"),
)


def _official_config() -> dict[str, Any]:
    sizes = {
        "seq_len": GENES + 2,
        "n_class": 104,
        "mask_token_id": 102,
        "pad_token_id": 103,
        "encoder": {**ENCODER, "norm_first": False},
        "decoder": {**DECODER, "norm_first": False},
    }
    return {
        "model": "mae_autobin",
        "model_config": {"mae_autobin": sizes},
        "dataset_config": {"rnaseq": {"bin_num": BINS, "bin_alpha": ALPHA}},
    }


def _official_state(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    width, decoder_width = ENCODER["hidden_dim"], DECODER["hidden_dim"]
    inner = DECODER["heads"] * DECODER["dim_head"]
    state: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int, scale: float = 1.0) -> None:
        state[f"model.{name}"] = scale * torch.randn(shape, generator=draw)

    def linear(name: str, columns: int, rows: int) -> None:
        add(f"{name}.weight", rows, columns, scale=columns**-0.5)
        add(f"{name}.bias", rows, scale=0.3)

    def norm(name: str, size: int) -> None:
        add(f"{name}.weight", size, scale=0.2)
        state[f"model.{name}.weight"] += 1.0
        add(f"{name}.bias", size, scale=0.2)

    linear("token_emb.mlp", 1, BINS)
    linear("token_emb.mlp2", BINS, BINS)
    for name, rows in (("emb", BINS), ("emb_mask", 1), ("emb_pad", 1)):
        add(f"token_emb.{name}.weight", rows, width)
    add("pos_emb.weight", GENES + 3, width)
    for layer in range(ENCODER["depth"]):
        stem = f"encoder.transformer_encoder.{layer}."
        add(f"{stem}self_attn.in_proj_weight", 3 * width, width, scale=width**-0.5)
        add(f"{stem}self_attn.in_proj_bias", 3 * width, scale=0.3)
        linear(f"{stem}self_attn.out_proj", width, width)
        linear(f"{stem}linear1", width, ENCODER_FFN)
        linear(f"{stem}linear2", ENCODER_FFN, width)
        norm(f"{stem}norm1", width)
        norm(f"{stem}norm2", width)
    norm("encoder.norm", width)
    linear("decoder_embed", width, decoder_width)
    state["model.decoder.performer.calls_since_last_redraw"] = torch.tensor(0)
    for layer in range(DECODER["depth"]):
        stem = f"decoder.performer.net.layers.{layer}."
        norm(f"{stem}0.norm", decoder_width)
        add(f"{stem}0.fn.fast_attention.projection_matrix", FEATURES, DECODER["dim_head"])
        for name in ("to_q", "to_k", "to_v"):
            linear(f"{stem}0.fn.{name}", decoder_width, inner)
        linear(f"{stem}0.fn.to_out", inner, decoder_width)
        norm(f"{stem}1.norm", decoder_width)
        linear(f"{stem}1.fn.fn.w1", decoder_width, DECODER_FFN)
        linear(f"{stem}1.fn.fn.w2", DECODER_FFN, decoder_width)
    norm("decoder.norm", decoder_width)
    norm("norm", decoder_width)
    linear("to_final", decoder_width, 1)
    return state


@pytest.fixture
def official_parts() -> dict[str, dict[str, Any]]:
    """What an official file holds, with random weights; a test may change it before it saves it."""
    return {
        part: {"config": _official_config(), "state_dict": _official_state(seed)}
        for seed, part in enumerate(("cell", "rde", "gene"))
    }


@pytest.fixture
def official_file(official_parts: dict[str, dict[str, Any]], tmp_path: Path) -> Path:
    """``official_parts`` as a file."""
    torch.save(official_parts, tmp_path / "official.ckpt")
    return tmp_path / "official.ckpt"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 200 cells of two kinds over 50 genes; every tenth cell has no label in the obs column ``kind``."""
    rng = np.random.default_rng(0)
    rates = np.where(np.arange(STORE_CELLS)[:, None] % 2 == np.arange(STORE_GENES) % 2, 40.0, 0.3)
    dense = rng.poisson(rates)
    cell, gene = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum((dense > 0).sum(1))]).astype(np.int64)
    rows = np.arange(STORE_CELLS, dtype=np.int64)
    cells = CellBatch(indptr, gene.astype(np.int32), dense[cell, gene].astype(np.float32), rows)
    vocabulary = Vocabulary(tuple(f"GENE{index}" for index in range(STORE_GENES)))
    path = tmp_path_factory.mktemp("pretrain") / "store"
    kinds = [("even", "odd")[row % 2] if row % 10 else None for row in range(STORE_CELLS)]
    obs = pa.table({"source_row": rows, "cell_name": [f"cell{row}" for row in rows], "kind": kinds})
    with replacing_store(path) as folder:
        start_store(folder, vocabulary)
        shard = write_shard(folder, "00000", cells, cell_keys(0, rows), obs)
        finish_store(folder, vocabulary, [shard], seed=0, qc={}, sources=[])
    return path


def run_config(*overrides: str) -> PretrainConfig:
    """Of the run ``undisturbed``, or of one that differs from it in a few values."""
    return load_config("tiny", [*RUN_SETTINGS, *overrides])


@pytest.fixture(scope="session")
def undisturbed(ray_local: None, store: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainResult:
    """A finished run of two ranks that nothing happened to. Not to be changed: tests take a copy of its folder."""
    return pretrain(run_config(), store, tmp_path_factory.mktemp("run") / "undisturbed")


@pytest.fixture(scope="session")
def model_genes() -> list[str]:
    """The vocabulary of the small checkpoint."""
    return [f"GENE{index}" for index in range(GENES)]


@pytest.fixture(scope="session")
def random_cells() -> Callable[..., CellBatch]:
    """Make a batch of integer counts: ``random_cells(cells, genes=..., density=..., seed=...)``."""

    def make(cells: int, *, genes: int = GENES, density: float = 0.4, seed: int = 0) -> CellBatch:
        rng = np.random.default_rng(seed)
        counts = rng.poisson(3.0, (cells, genes)) + 1
        return from_dense(np.where(rng.random((cells, genes)) < density, counts, 0))

    return make


@pytest.fixture(scope="session")
def cells_from_dense() -> Callable[[np.ndarray], CellBatch]:
    """Make a batch from a dense matrix, cells x genes."""
    return from_dense


def from_dense(matrix: np.ndarray) -> CellBatch:
    cell, gene = np.nonzero(matrix)
    indptr = np.concatenate([[0], np.cumsum((matrix != 0).sum(1))]).astype(np.int64)
    counts = matrix[cell, gene].astype(np.float32)
    return CellBatch(indptr, gene.astype(np.int32), counts, np.arange(len(matrix), dtype=np.int64))


@pytest.fixture
def files_no_larger_than() -> Callable[[int], AbstractContextManager[None]]:
    """While its context lasts, writing past so many bytes of a file fails for this process, as on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        former = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)

    return limited
