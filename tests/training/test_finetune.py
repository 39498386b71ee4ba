"""Fine-tuning as a user meets it: what learns, what is kept, what is refused."""

from __future__ import annotations

import json
import shutil
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
from cellfoundry_model.checkpoint import load_model, save_model
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.errors import ModelError
from cellfoundry_model.head_files import load_head
from cellfoundry_serving.embed import embed
from cellfoundry_serving.encode import encode_source
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.predict import predict_source
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.finetune.config import build_config
from cellfoundry_training.finetune.result import Finetuned
from cellfoundry_training.finetune.run import finetune
from cellfoundry_training.finetune.split import stratified_split

GENES, CELLS = 50, 150  # the genes of the store of conftest.py
CONFIG = ModelConfig(
    n_genes=GENES,
    bins=6,
    bin_alpha=1.0,
    mask_token_id=102,
    pad_token_id=103,
    encoder_width=16,
    encoder_depth=3,
    encoder_heads=2,
    decoder_width=8,
    decoder_depth=1,
    decoder_heads=1,
    decoder_head_dim=8,
    favor_features=8,
)
FAST = {"max_epochs": 12, "learning_rate": 3e-2, "encoder_learning_rate": 3e-3, "batch_cells": 16}
SLOWER = {"learning_rate": 1e-2, "encoder_learning_rate": 1e-3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("finetune") / "base"
    save_model(CellModel(CONFIG), [f"GENE{gene}" for gene in range(GENES)], out, {"origin": "a test"})
    return out


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Three kinds of cells, each with a third of the genes high; ``score`` is how high the first ten genes are."""
    rng = np.random.default_rng(0)
    kind = np.arange(CELLS) % 3
    rates = np.where(kind[:, None] == np.arange(GENES) % 3, 20.0, 1.0)
    score = rng.uniform(0, 4, CELLS)
    rates[:, :10] = np.exp(score)[:, None]
    counts = rng.poisson(rates).astype(np.float32)
    obs = pd.DataFrame(
        {"kind": pd.Categorical(np.array(["alpha", "beta", "T/NK"])[kind]), "score": score},
        index=[f"cell{row}" for row in range(CELLS)],
    )
    var = pd.DataFrame(index=[f"GENE{gene}" for gene in range(GENES)])
    return AnnData(sp.csr_matrix(counts), obs=obs, var=var)


def run(base: Path, cells: Any, out: Path, label: str = "kind", **settings: Any) -> Finetuned:
    return finetune(base, cells, out, build_config(FAST | {"label": label} | settings))


def weights(model_dir: Path) -> dict[str, torch.Tensor]:
    return load_model(model_dir).model.state_dict()


def changed(before: Path, after: Path) -> set[str]:
    """Names of the tensors that differ, up to their layer."""
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {
        ".".join(name.split(".")[:3]) if name.startswith("encoder.layers") else name.split(".")[0]
        for name in old
        if not torch.equal(old[name], new[name])
    }


LAYERS = {f"encoder.layers.{layer}" for layer in range(CONFIG.encoder_depth)}


@pytest.mark.parametrize(
    ("settings", "learned"),
    [
        ({"tune": "head"}, set()),
        ({"tune": "head", "hidden": 8, "pool": "max"}, set()),
        ({"tune": "last", "last": 1}, {"encoder.layers.2", "encoder"}),
        ({"tune": "last"}, {"encoder.layers.1", "encoder.layers.2", "encoder"}),
        ({"tune": "full"}, LAYERS | {"encoder", "value_embedding", "position_embedding"}),
        ({"tune": "lora", "lora_rank": 2}, LAYERS),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_it_learns_what_it_is_told_and_nothing_else(
    base: Path, cells: AnnData, tmp_path: Path, settings: dict[str, Any], learned: set[str]
) -> None:
    out = tmp_path / "out"
    result = run(base, cells, out, **settings)
    assert result.scores.accuracy > 0.9
    assert changed(base, out) == learned
    # What predict says later, through another road, is what was judged.
    engine = open_engine(out)
    predicted, _ = predict_source(cells, engine, load_head(out, engine.info))
    called = predicted["prediction"].to_numpy()[_test_rows(cells, result)]
    assert called.tolist() == [result.head.classes[number] for number in result.test_predicted]


def _test_rows(cells: AnnData, result: Finetuned) -> np.ndarray:
    """Rows of the test cells, by drawing the split again as the documentation says."""
    codes = pd.Categorical(cells.obs[result.config.label].astype(str)).codes.astype(np.int64)
    config = result.config
    return stratified_split(
        codes, validation_share=config.validation_share, test_share=config.test_share, seed=config.seed
    ).test


@pytest.mark.parametrize(("tune", "least"), [("head", 0.9), ("full", 0.8)])
def test_a_number_is_learnt(base: Path, cells: AnnData, tmp_path: Path, tune: str, least: float) -> None:
    result = run(base, cells, tmp_path / "out", "score", tune=tune, max_epochs=20, **SLOWER)
    assert result.head.task == "regression"
    assert result.scores.pearson is not None
    assert result.scores.pearson > least
    assert result.scores.r2 > least**2 - 0.1
    engine = open_engine(tmp_path / "out")
    predicted, _ = predict_source(cells, engine, load_head(tmp_path / "out", engine.info))
    assert list(predicted.columns) == ["prediction"]
    assert np.corrcoef(predicted["prediction"], cells.obs["score"])[0, 1] > least


def test_large_numbers_that_differ_little_are_learnt(base: Path, cells: AnnData, tmp_path: Path) -> None:
    late = cells.copy()
    late.obs["second"] = 1.7e9 + cells.obs["score"]  # float32 could not tell any two of them apart
    result = run(base, late, tmp_path / "out", "second", max_epochs=20, **SLOWER)
    assert result.scores.pearson > 0.9
    engine = open_engine(tmp_path / "out")
    predicted, _ = predict_source(late, engine, load_head(tmp_path / "out", engine.info))
    assert np.abs(predicted["prediction"] - late.obs["second"]).mean() < 1.0


def test_numbers_that_only_held_out_cells_vary_in_are_refused(
    base: Path, cells: AnnData, tmp_path: Path
) -> None:
    seldom = cells.copy()
    tenth_C = np.arange(CELLS) * 10 // CELLS  # equal numbers are ranked by row
    seed = next(
        seed
        for seed in range(100)
        if CELLS - 1 not in stratified_split(tenth_C, validation_share=0.1, test_share=0.2, seed=seed).train
    )
    seldom.obs["age"] = np.where(np.arange(CELLS) == CELLS - 1, 1.0, 0.0)
    with pytest.raises(TrainingError, match="obs column 'age' is 0 in all 100 training cells"):
        run(base, seldom, tmp_path / "out", "age", seed=seed)


def test_the_directory_tells_how_it_was_made(base: Path, cells: AnnData, tmp_path: Path) -> None:
    result = run(base, cells, tmp_path / "out")
    info = load_model(tmp_path / "out").info
    assert info["origin"] == "a test"
    assert info["finetuned"]["base_sha256"] == load_model(base).info["weights_sha256"]
    assert info["finetuned"]["config"]["label"] == "kind"
    record = json.loads((tmp_path / "out" / "finetune.json").read_text())
    assert record["scores"]["accuracy"] == result.scores.accuracy
    assert record["cells"] == {
        "train": 105, "validation": 15, "test": 30, "without_label": 0, "without_counts": 0, "rare": {}
    }  # fmt: skip
    head = json.loads((tmp_path / "out" / "head.json").read_text())
    assert head["classes"] == ["T/NK", "alpha", "beta"]


@pytest.mark.parametrize("tune", ["head", "full", "lora"])
def test_a_seed_gives_one_result(base: Path, cells: AnnData, tmp_path: Path, tune: str) -> None:
    settings = {"tune": tune, "max_epochs": 2}
    run(base, cells, tmp_path / "first", **settings)
    torch.manual_seed(1)  # what others drew plays no part
    run(base, cells, tmp_path / "second", **settings)
    run(base, cells, tmp_path / "other", seed=1, **settings)
    first, second, other = (load_model(tmp_path / name).info for name in ("first", "second", "other"))
    for key in ("weights_sha256", "head_sha256"):
        assert first[key] == second[key]
    assert first["head_sha256"] != other["head_sha256"]


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_losses_do_not_depend_on_how_a_step_is_cut(
    base: Path, cells: AnnData, tmp_path: Path, class_weights: str
) -> None:
    settings = {"tune": "full", "max_epochs": 2, "class_weights": class_weights} | SLOWER
    whole, cut = (
        run(base, cells, tmp_path / "out", max_tokens=tokens, **settings).epochs for tokens in (10**6, 60)
    )
    for one, other in zip(whole, cut, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.validation_loss == pytest.approx(other.validation_loss, rel=1e-4)


def test_the_best_epoch_is_kept_and_patience_ends_the_run(base: Path, cells: AnnData, tmp_path: Path) -> None:
    # Labels that nothing explains: the validation loss soon only rises.
    noise = cells.copy()
    noise.obs["kind"] = np.random.default_rng(0).permutation(cells.obs["kind"].to_numpy())
    settings = {"tune": "full", "patience": 3, "max_epochs": 50, "learning_rate": 1e-2}
    result = run(base, noise, tmp_path / "out", **settings)
    assert len(result.epochs) == result.best.epoch + 3 < 50
    assert result.best.validation_loss == min(epoch.validation_loss for epoch in result.epochs)
    short = run(base, noise, tmp_path / "short", **settings | {"max_epochs": result.best.epoch})
    assert (
        load_model(tmp_path / "out").info["weights_sha256"]
        == load_model(tmp_path / "short").info["weights_sha256"]
    )
    assert np.array_equal(short.test_predicted, result.test_predicted)


def test_balanced_weights_call_the_rare_class_more_often(base: Path, cells: AnnData, tmp_path: Path) -> None:
    # Nothing tells the classes apart, so their weights decide alone: 15 cells against 135.
    uneven = cells.copy()
    uneven.obs["kind"] = np.random.default_rng(0).permutation(["rare"] * 15 + ["usual"] * 135)
    called = {}
    for weighting in ("none", "balanced"):
        result = run(base, uneven, tmp_path / weighting, class_weights=weighting, learning_rate=3e-3)
        called[weighting] = int((result.test_predicted == result.head.classes.index("rare")).sum())
    assert called["none"] <= 3
    assert called["balanced"] >= 6


def test_cells_that_cannot_take_part_are_left_out_and_counted(
    base: Path, cells: AnnData, tmp_path: Path
) -> None:
    worse = cells.copy()
    kinds = worse.obs["kind"].astype(object)
    kinds.iloc[:7] = None
    kinds.iloc[7:9] = "once or twice"
    worse.obs["kind"] = kinds
    worse.X = sp.diags((~np.isin(np.arange(CELLS), (9, 10, 11))).astype(np.float32)) @ worse.X
    result = run(base, worse, tmp_path / "out")
    assert result.left_out() == [
        "7 cells without a label",
        "3 labelled cells without counts in the model's genes",
        "2 cells of classes with fewer than 3 cells: once or twice (2)",
    ]
    assert result.cells.train + result.cells.validation + result.cells.test == CELLS - 12
    assert result.head.classes == ("T/NK", "alpha", "beta")


def test_a_store_and_a_file_are_sources_too(base: Path, store: Path, cells: AnnData, tmp_path: Path) -> None:
    result = run(base, store, tmp_path / "store")
    assert result.head.classes == ("even", "odd")
    assert result.left_out() == ["20 cells without a label"]
    assert result.scores.accuracy > 0.9
    cells.write_h5ad(tmp_path / "cells.h5ad")
    from_file = run(base, tmp_path / "cells.h5ad", tmp_path / "file")
    assert from_file.scores == run(base, cells, tmp_path / "memory").scores


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"label": "knid"}, TrainingError, "no obs column 'knid'; the nearest is 'kind'"),
        ({"label": "one"}, TrainingError, "only 'same' has as many"),
        ({"label": "none"}, TrainingError, "is empty for all 150 cells"),
        ({"task": "regression"}, TrainingError, "regression needs numbers"),
        ({"label": "infinite"}, TrainingError, r"holds inf in row 3 \(cell3\)"),
        ({"tune": "last", "last": 4}, TrainingError, "--last 4: the encoder has 3 layers"),
        ({"tune": "full", "last": 2}, TrainingError, "last is for tune last"),
        ({"lora_rank": 4}, TrainingError, "lora_rank is for tune lora, and tune is head"),
        ({"label": "score", "class_weights": "balanced"}, TrainingError, "class_weights are for classes"),
        ({"tune": "all"}, TrainingError, "fine-tuning: tune: .* not 'all'"),
        ({"rate": 1}, TrainingError, "unknown key 'rate'; the nearest is"),
        ({"target": "x4"}, ModelError, "target is 'x4'"),
        ({"device": "cuda"}, TrainingError, "no GPU here"),
        (
            {"tune": "full", "learning_rate": 1e30, "encoder_learning_rate": 1e30},
            TrainingError,
            "not a finite number in epoch 1",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_in_one_sentence(
    base: Path, cells: AnnData, tmp_path: Path, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU, so cuda is no mistake")
    bad = cells.copy()
    bad.obs["one"] = "same"
    bad.obs["none"] = pd.Series([None] * CELLS, index=bad.obs_names, dtype=object)
    bad.obs["infinite"] = np.where(np.arange(CELLS) == 3, np.inf, 1.0 * np.arange(CELLS))
    with pytest.raises(error, match=words):
        run(base, bad, tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


def test_settings_are_given_once(base: Path, cells: AnnData, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="config and tune, last are both given"):
        cf.finetune(base, cells, tmp_path / "out", build_config({"label": "kind"}), tune="last", last=1)
    assert list(tmp_path.iterdir()) == []


def test_bad_cells_and_models_are_refused(base: Path, cells: AnnData, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model directory"):
        run(tmp_path / "no", cells, tmp_path / "out")
    normalised = cells.copy()
    normalised.X = normalised.X * 0.5
    with pytest.raises(DataError, match="look already normalised"):
        run(base, normalised, tmp_path / "out")
    empty = cells.copy()
    empty.X = sp.csr_matrix(empty.shape, dtype=np.float32)
    with pytest.raises(TrainingError, match="no labelled cell has counts"):
        run(base, empty, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_lora_without_peft_names_the_extra(
    base: Path, cells: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TrainingError, match=r"pip install 'cellfoundry\[lora\]'"):
        run(base, cells, tmp_path / "out", tune="lora")


def test_out_replaces_a_model_but_nothing_else(base: Path, cells: AnnData, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("one")
    with pytest.raises(ModelError, match="exists and is no model directory"):
        run(base, cells, tmp_path / "thesis")
    with pytest.raises(TrainingError, match="is the model to start from"):
        run(base, cells, base)
    run(base, cells, tmp_path / "out", max_epochs=1)
    again = run(base, cells, tmp_path / "out", "score", max_epochs=1)
    engine = open_engine(tmp_path / "out")
    assert load_head(tmp_path / "out", engine.info).config == again.head


def test_an_out_that_cannot_be_written_is_refused_before_cells_are_read(
    base: Path, cells: AnnData, tmp_path: Path
) -> None:
    (tmp_path / "afile").write_text("kept")
    read: list[str] = []
    config = build_config({"label": "kind"})
    for out in (tmp_path / "afile" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(TrainingError, match=r"cannot be written .* give another --out"):
            finetune(base, cells, out, config, progress=lambda *at: read.append(at[0]))
    assert read == []
    assert [path.name for path in tmp_path.iterdir()] == ["afile"]


def test_cells_inside_out_are_not_lost(base: Path, cells: AnnData, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "out")
    source = tmp_path / "out" / "cells.h5ad"
    cells.write_h5ad(source)
    with pytest.raises(TrainingError, match=r"cells.h5ad lies in .*out, which would be replaced"):
        run(base, source, tmp_path / "out")
    assert source.exists()


def test_an_interrupted_run_leaves_nothing(base: Path, cells: AnnData, tmp_path: Path) -> None:
    def stop(label: str, done: int, _: int) -> None:
        if label == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(base, cells, tmp_path / "out", build_config(FAST | {"label": "kind"}), progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_finetuned_model_can_be_tuned_on(base: Path, cells: AnnData, tmp_path: Path) -> None:
    run(base, cells, tmp_path / "first", tune="last")
    result = run(tmp_path / "first", cells, tmp_path / "second", "score", max_epochs=1)
    assert result.base_sha256 == load_model(tmp_path / "first").info["weights_sha256"]
    engine = open_engine(tmp_path / "second")
    assert load_head(tmp_path / "second", engine.info).config.task == "regression"


def test_a_decoder_that_no_longer_fits_gives_no_numbers(base: Path, cells: AnnData, tmp_path: Path) -> None:
    run(base, cells, tmp_path / "head", max_epochs=1)
    run(base, cells, tmp_path / "full", tune="full", max_epochs=1)
    run(tmp_path / "full", cells, tmp_path / "full then head", max_epochs=1)
    for output in ("gene", "expression"):
        before, after = (
            encode_source(cells, open_engine(folder), output=output) for folder in (base, tmp_path / "head")
        )
        np.testing.assert_array_equal(before, after)
        for name in ("full", "full then head"):
            engine = open_engine(tmp_path / name)
            assert encode_source(cells, engine).shape == (CELLS, 64)
            with pytest.raises(ServingError, match=rf"\(tune full\) .* no {output} output; take that from"):
                encode_source(cells, engine, output=output)
            with pytest.raises(ServingError, match="decoder no longer fits"):
                embed(cells, tmp_path / name, tmp_path / "out.zarr", output=output)
    assert not (tmp_path / "out.zarr").exists()


def test_embed_takes_a_finetuned_model(base: Path, cells: AnnData, tmp_path: Path) -> None:
    run(base, cells, tmp_path / "head", max_epochs=1)
    for name, model in (("before", base), ("after", tmp_path / "head")):
        embed(cells, model, tmp_path / f"{name}.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "before.npy"), np.load(tmp_path / "after.npy"))
