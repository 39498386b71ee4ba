"""``train finetune`` and ``predict`` as installed commands, on a model that knows eight genes."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from .conftest import COMMAND, entry_point, program

GENES = ["CD3D", "CD8A", "MS4A1", "LYZ", "NKG7", "GNLY", "PPBP", "FCER1A"]
CELLS = 90


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from cellfoundry_model.architecture import CellModel
    from cellfoundry_model.checkpoint import save_model
    from cellfoundry_model.config import ModelConfig
    from cellfoundry_model.presets import PRESETS

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "small"
    config = ModelConfig.from_dict(PRESETS["tiny"].to_dict() | {"n_genes": len(GENES)})
    save_model(CellModel(config), GENES, folder, {})
    return folder


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    kind = np.arange(CELLS) % 2
    counts = rng.poisson(np.where(kind[:, None] == np.arange(len(GENES)) % 2, 30.0, 1.0))
    counts[0] = 0
    obs = pd.DataFrame(
        {"kind": pd.Categorical(np.array(["T cell", "B cell"])[kind]), "age": rng.uniform(20, 80, CELLS)},
        index=[f"cell{row}" for row in range(CELLS)],
    )
    obs.loc["cell5", "kind"] = np.nan
    path = tmp_path / "cells.h5ad"
    anndata.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES)
    ).write_h5ad(path)
    return path


def test_from_labels_to_predictions(model_dir: Path, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "typed"
    arguments = ("--model", model_dir, "--data", cells.as_uri(), "--label", "kind", "--out", out)
    result = program("train", "finetune", *arguments, "--last", "1", "--set", "learning_rate=0.02")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:2] == [
        "left out: 1 cell without a label",
        "left out: 1 labelled cell without counts in the model's genes",
    ]
    assert "18 held-out cells: 100.0 % right" in lines[2]
    page = (out / "report.html").read_text()
    assert "Confusion matrix" in page
    assert 'src="http' not in page
    assert 'href="http' not in page

    result = program("predict", cells.as_uri(), "--model", out, "--out", tmp_path / "kinds.csv")
    assert result.returncode == 0, result.stderr
    assert "1 of 90 cells have no counts" in result.stderr
    table = pd.read_csv(tmp_path / "kinds.csv")
    known = table["kind"].notna() & table["prediction"].notna()
    assert known.sum() == CELLS - 2
    assert (table["kind"] == table["prediction"])[known].all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--label", "knid"), "no obs column 'knid'; the nearest is 'kind'"),
        (("--label", "kind", "--last", "3"), "--last 3: the encoder has 2 layers"),
        (("--label", "kind", "--set", "rank=1"), "unknown key 'rank'; the nearest is 'lora_rank'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_one_sentence(
    options: tuple[str, ...], words: str, model_dir: Path, cells: Path, tmp_path: Path
) -> None:
    arguments = ("--model", model_dir, "--data", cells, "--out", tmp_path / "out", *options)
    result = entry_point("train", "finetune", *arguments)
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert list(tmp_path.iterdir()) == [cells]


def test_a_model_without_a_head_predicts_nothing(model_dir: Path, cells: Path, tmp_path: Path) -> None:
    result = program("predict", cells, "--model", model_dir, "--out", tmp_path / "out.csv")
    assert result.returncode == 2
    assert "the model has no head" in result.stderr
    assert list(tmp_path.iterdir()) == [cells]


def test_ctrl_c_leaves_nothing(model_dir: Path, cells: Path, tmp_path: Path) -> None:
    command = [
        "train",
        "finetune",
        "--model",
        model_dir,
        "--data",
        cells,
        "--label",
        "kind",
        "--out",
        tmp_path / "out",
    ]
    endless = ["--tune", "full", "--set", "max_epochs=1000000", "--set", "patience=1000000"]
    process = subprocess.Popen(
        [str(COMMAND), *map(str, command), *endless],
        stderr=subprocess.PIPE,
        text=True,
        # A parent may have Ctrl-C ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    try:
        while not process.stderr.readline().startswith("train: "):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()  # nothing else would end it if the test fails
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == [cells]
