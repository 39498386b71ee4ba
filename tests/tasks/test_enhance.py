"""Read-depth enhancement as a user meets it: the command, its report, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

import cellfoundry as cf
from cellfoundry_data.errors import DataError
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import save_model
from cellfoundry_model.config import ModelConfig
from cellfoundry_tasks.enhance.run import Enhanced
from cellfoundry_tasks.errors import TaskError

GENES, CELLS, TYPES = 60, 90, 3
CONFIG = ModelConfig(
    n_genes=GENES,
    bins=6,
    bin_alpha=1.0,
    mask_token_id=102,
    pad_token_id=103,
    encoder_width=16,
    encoder_depth=1,
    encoder_heads=2,
    decoder_width=8,
    decoder_depth=1,
    decoder_heads=1,
    decoder_head_dim=8,
    favor_features=8,
)
SETTINGS: dict[str, Any] = {
    "label": "cell_type",
    "heldout_column": "heldout",
    "depths": (0.1, 0.4),
    "cluster_depth": 0.4,
    "seeds": 2,
    "scvi_epochs": 1,
}
PEERS = {
    "model",
    "random weights",
    "thinned counts",
    "gene means",
    "one molecule of each gene",
    "MAGIC",
    "scVI",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("enhance") / "model"
    save_model(
        CellModel(CONFIG),
        [f"GENE{gene}" for gene in range(GENES)],
        out,
        {"origin": "a test", "steps": 7, "gene_start": "components"},
    )
    return out


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Three types of cells, each with a third of the genes high; every third cell is held out."""
    rng = np.random.default_rng(0)
    kind = np.arange(CELLS) // (CELLS // TYPES)
    rates = np.where(kind[:, None] == np.arange(GENES) % TYPES, 12.0, 0.5)
    obs = pd.DataFrame(
        {"cell_type": np.array(["alpha", "beta", "T/NK"])[kind], "heldout": np.arange(CELLS) % 3 == 0},
        index=[f"cell{row}" for row in range(CELLS)],
    )
    var = pd.DataFrame(index=[f"GENE{gene}" for gene in range(GENES)])
    return AnnData(sp.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs, var=var)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("enhanced") / "report"


@pytest.fixture(scope="module")
def result(model: Path, cells: AnnData, out: Path) -> Enhanced:
    return cf.tasks.enhance(cells, model, out, **SETTINGS)


def record(out: Path) -> dict[str, Any]:
    found = json.loads((out / "result.json").read_text())
    assert isinstance(found, dict)
    return found


def scores(found: dict[str, Any], depth: float, method: str) -> dict[str, Any]:
    (row,) = [row for row in found["gene_level"] if row["depth"] == depth and row["method"] == method]
    return row["scores"]


def test_everyone_is_judged_at_every_depth(result: Enhanced, out: Path) -> None:
    found = record(out)
    for depth in SETTINGS["depths"]:
        methods = {row["method"] for row in found["gene_level"] if row["depth"] == depth}
        assert methods >= PEERS
        assert {"kNN smoothing, log of mean, k=5", "kNN smoothing, mean of logs, k=60"} <= methods
    assert found["judged"] == CELLS // 3
    assert scores(found, 0.4, "model")["mae"]["over_seeds"]["splits"] == 2
    assert scores(found, 0.4, "model")["mae"]["over_cells"]["splits"] == CELLS // 3


def test_neighbours_of_the_same_type_help_and_random_weights_do_not(result: Enhanced, out: Path) -> None:
    found = record(out)
    for key in ("mae", "rmse_all"):
        smoothed = scores(found, 0.1, "kNN smoothing, log of mean, k=15")[key]["mean"]
        assert smoothed < 0.9 * scores(found, 0.1, "thinned counts")[key]["mean"]
        assert smoothed < 0.9 * scores(found, 0.1, "random weights")[key]["mean"]
    # More molecules, less error.
    assert (
        scores(found, 0.4, "thinned counts")["mae"]["mean"]
        < scores(found, 0.1, "thinned counts")["mae"]["mean"]
    )


def test_clusters_of_the_full_depth_are_the_labels(result: Enhanced, out: Path) -> None:
    found = record(out)
    assert found["reference"] == {"origin": "obs column 'cell_type'", "clusters": 3, "cells": CELLS // 3}
    by_method = {(row["method"], row["fold"]): row["scores"] for row in found["cluster_level"]}
    assert by_method["full depth", None]["ari"]["mean"] > 0.9
    numbers = [number for row in found["cluster_level"] for number in row["clusters"]]
    assert {number["wanted"] for number in numbers} == {3}
    missed = sum(number["found"] != 3 for number in numbers)
    says = f"{missed} of {len(numbers)} clusterings" if missed else f"All {len(numbers)} clusterings"
    assert says in (out / "report.html").read_text()
    folds = sorted(fold for method, fold in by_method if method == "model")
    assert folds == [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0]  # 2.5 leads back to the full depth
    for (method, fold), of_method in by_method.items():
        once = fold is not None and method != "model"
        thinnings = 1 if once or method in ("scVI", "model, expression") else SETTINGS["seeds"]
        assert of_method["nmi"]["splits"] == thinnings, (method, fold)
    panels = [panel.name for panel in result.cluster_level.panels]
    assert panels == ["full depth", "thinned counts", "model", "model, expression"]
    for method in ("thinned counts", "kNN smoothing", "MAGIC", "scVI"):
        assert {"nmi", "ari"} <= by_method[method, None].keys()


def test_the_page_holds_all_and_asks_for_nothing(result: Enhanced, out: Path) -> None:
    page = (out / "report.html").read_text()
    for text in (
        "kNN smoothing",
        "MAGIC",
        "scVI",
        "no reproduction",
        result.model["weights_sha256"],
        "steps 7",
        "gene start components",
        "told by obs column &#39;heldout&#39;",
        "mean of 25 posterior samples",
        "T/NK",
    ):
        assert text in page
    assert "<svg" in page
    for reference in ('src="http', 'href="http', "<script", "<link", "@import"):
        assert reference not in page.replace('xlink:href="#', "")


def test_a_result_prints_as_one_line(result: Enhanced) -> None:
    text = str(result)
    assert text.startswith("MAE of expressed genes at 10 % depth: ")
    assert "(model), " in text
    assert "kNN smoothing, log of mean, k=" in text
    assert "\n" not in text
    assert len(text) < 250


def test_a_seed_gives_one_result(
    result: Enhanced, model: Path, cells: AnnData, out: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)  # what others drew plays no part
    cf.tasks.enhance(cells, model, tmp_path / "again", **SETTINGS)
    first, again = record(out), record(tmp_path / "again")
    first.pop("seconds")
    again.pop("seconds")
    assert first == again


def test_without_a_label_clusters_come_from_the_full_depth(
    model: Path, cells: AnnData, tmp_path: Path
) -> None:
    settings = {"depths": (0.4,), "cluster_depth": 0.4, "seeds": 1, "scvi_epochs": 0, "cells": 20}
    result = cf.tasks.enhance(cells, model, tmp_path / "out", **settings)
    assert "Leiden" in result.cluster_level.origin
    assert result.judged == 20
    found = record(tmp_path / "out")
    assert "scVI" not in {row["method"] for row in found["gene_level"]}
    assert (
        "the model may have been pretrained on the judged cells" in (tmp_path / "out/report.html").read_text()
    )
    assert scores(found, 0.4, "model")["mae"]["over_seeds"]["low"] is None  # one thinning has no interval


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"depths": (1.5,)}, "between 0 and 1"),
        ({"cluster_depth": 0.0}, "between 0 and 1"),
        ({"depths": (0.1, 0.4, 0.1)}, "depth 0.1 is given 2 times; give each depth once"),
        ({"label": "kind"}, "no column 'kind'; there are: cell_type, heldout"),
        ({"heldout_column": "cell_type"}, "other values than true and false"),
        ({"depth": 0.1}, "depth"),
    ],
    ids=["depth", "cluster depth", "depth twice", "label", "heldout", "unknown"],
)
def test_what_cannot_be_is_refused(
    model: Path, cells: AnnData, tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(TaskError, match=says):
        cf.tasks.enhance(cells, model, tmp_path / "out", **SETTINGS | settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("n_cells", "held_out", "says"),
    [
        (12, 12, "thinned to 0.4, 12 of the 12 cells have counts; MAGIC needs 16, so give more cells"),
        (30, 2, "marks 2 cells as held out; at least 3 are needed"),
    ],
)
def test_too_few_cells_are_told_of(
    model: Path, cells: AnnData, tmp_path: Path, n_cells: int, held_out: int, says: str
) -> None:
    few = cells[:: len(cells) // n_cells][:n_cells].copy()
    few.obs["heldout"] = np.arange(n_cells) < held_out
    with pytest.raises(TaskError, match=says):
        cf.tasks.enhance(few, model, tmp_path / "out", **SETTINGS | {"depths": (0.4,), "cluster_depth": 0.4})
    assert not list(tmp_path.iterdir())


def test_normalised_values_are_refused(model: Path, cells: AnnData, tmp_path: Path) -> None:
    normalised = cells.copy()
    normalised.X = normalised.X.log1p()
    with pytest.raises((TaskError, DataError), match="raw counts"):
        cf.tasks.enhance(normalised, model, tmp_path / "out", **SETTINGS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (
            {"part": "rde"},
            "model: is part 'rde' of official weights, whose decoder was not trained for expression; give part 'gene' "
            "as --model and this one as --embedding-model",
        ),
        (
            {"finetuned": {"config": {"tune": "full"}, "before": None}},
            "model: has a fine-tuned encoder (tune full), which its decoder no longer fits; give the model before "
            "fine-tuning as --model and this one as --embedding-model",
        ),
    ],
    ids=["official part", "fine-tuned"],
)
def test_a_model_that_says_no_expression_is_refused(
    cells: AnnData, tmp_path: Path, info: dict[str, Any], says: str
) -> None:
    genes = [f"GENE{gene}" for gene in range(GENES)]
    save_model(CellModel(CONFIG), genes, tmp_path / "model", info)
    with pytest.raises(TaskError) as error:
        cf.tasks.enhance(cells, tmp_path / "model", tmp_path / "out", **SETTINGS)
    assert str(error.value).endswith(says)
    assert not (tmp_path / "out").exists()


def test_the_command_says_which_file_is_missing_and_where_there_is_one(model: Path, tmp_path: Path) -> None:
    line = ["task", "enhance", "--data", "baron.h5ad", "--model", str(model), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "cellfoundry", *line],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: baron.h5ad: there is no such file; give raw counts;")
    assert "GSE84133" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_report_and_lets_no_library_talk(
    model: Path, cells: AnnData, tmp_path: Path
) -> None:
    cells.write_h5ad(tmp_path / "cells.h5ad")
    line = [
        "task",
        "enhance",
        "--data",
        "cells.h5ad",
        "--model",
        str(model),
        "--out",
        "out",
        "--label",
        "cell_type",
    ]
    line += [
        "--depths",
        "0.4",
        "--seeds",
        "1",
        "--cells",
        "10",
        "--scvi-epochs",
        "1",
        "--cluster-depth",
        "0.4",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "cellfoundry", *line],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out: MAE of expressed genes at 40 % depth: ")
    assert {line.split(":")[0] for line in done.stderr.splitlines()} == {
        "gene level, thinnings",
        "cluster level, representations",
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "result.json"]
    assert "--depths 0.4" in (tmp_path / "out" / "report.html").read_text()


def test_progress_counts_what_is_clustered(model: Path, cells: AnnData, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    settings = SETTINGS | {"depths": (0.4,), "seeds": 1, "scvi_epochs": 0, "cells": 5}
    cf.tasks.enhance(
        cells, model, tmp_path / "out", progress=lambda *step: told.append(step), **settings
    )  # 1 / 0.4 is a published fold
    _, done, total = told[-1]
    assert done == total == len(record(tmp_path / "out")["cluster_level"])
