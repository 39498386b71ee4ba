"""Model directories: what is written comes back, whole or not at all, and damage is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import OWN_FILES, clear_leftovers, load_model, save_model, vocabulary_hash
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.errors import ModelError
from cellfoundry_model.presets import PRESETS


@pytest.fixture
def model() -> CellModel:
    torch.manual_seed(1)
    return CellModel(ModelConfig.from_dict(PRESETS["tiny"].to_dict() | {"n_genes": 40}))


@pytest.fixture
def saved(model: CellModel, model_genes: list[str], tmp_path: Path) -> Path:
    save_model(model, model_genes, tmp_path / "model", {"note": "first"})
    return tmp_path / "model"


def test_everything_comes_back(saved: Path, model: CellModel, model_genes: list[str]) -> None:
    loaded = load_model(saved)
    assert loaded.config == model.config
    assert loaded.vocab_genes == tuple(model_genes)
    assert not loaded.model.training
    assert loaded.info["note"] == "first"
    assert loaded.info["vocabulary_sha256"] == vocabulary_hash(model_genes)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_files_are_the_documented_ones(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors", "vocab.tsv"]
    document = json.loads((saved / "config.json").read_text())
    assert (document["format"], document["format_version"]) == ("cellfoundry-model", 1)
    assert (saved / "vocab.tsv").read_text().startswith("gene_name\tindex\nGENE0\t0\nGENE1\t1\n")
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_half_precision_weights_are_saved_as_float32(
    model: CellModel, model_genes: list[str], tmp_path: Path
) -> None:
    save_model(model.bfloat16(), model_genes, tmp_path / "model", {})
    tensors = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_an_older_model_directory_is_replaced(saved: Path, model: CellModel, model_genes: list[str]) -> None:
    with torch.no_grad():
        model.norm.bias.fill_(3.0)
    save_model(model, model_genes, saved, {"note": "second"})
    assert load_model(saved).info["note"] == "second"
    assert load_model(saved).model.norm.bias[0].item() == 3.0
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_an_empty_directory_is_filled(model: CellModel, model_genes: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_model(model, model_genes, tmp_path / "empty", {})
    load_model(tmp_path / "empty")


@pytest.mark.parametrize("kind", ["folder with other files", "file"])
def test_anything_else_in_the_way_is_left_alone(
    model: CellModel, model_genes: list[str], tmp_path: Path, kind: str
) -> None:
    target = tmp_path / "work"
    thesis = target if kind == "file" else target / "thesis.txt"
    thesis.parent.mkdir(exist_ok=True)
    thesis.write_text("years")
    with pytest.raises(ModelError, match="exists and is no model directory"):
        save_model(model, model_genes, target, {})
    assert thesis.read_text() == "years"
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_a_users_file_beside_a_model_is_not_lost(
    saved: Path, model: CellModel, model_genes: list[str]
) -> None:
    (saved / "report.html").write_text("of an earlier fine-tuning run, which may go")
    (saved / "thesis.txt").write_text("years")
    with pytest.raises(ModelError, match=r"holds what is not the model's \(thesis.txt\)"):
        save_model(model, model_genes, saved, {"note": "second"})
    assert (saved / "thesis.txt").read_text() == "years"
    assert load_model(saved).info["note"] == "first"


def test_all_that_the_layers_write_is_known_as_a_models_own() -> None:
    from cellfoundry_serving.export import layout
    from cellfoundry_training.finetune import run

    names = {name for key, name in vars(layout).items() if key.endswith("_FILE")}
    assert names | {run.RECORD_FILE, run.REPORT_FILE} <= OWN_FILES


def test_a_save_that_fails_leaves_the_old_model_and_nothing_else(
    saved: Path, model: CellModel, model_genes: list[str]
) -> None:
    with pytest.raises(TypeError):
        save_model(model, model_genes, saved, {"note": object()})
    assert load_model(saved).info["note"] == "first"
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_what_a_killed_save_left_is_cleared_and_a_model_moved_aside_comes_back(saved: Path) -> None:
    before = load_model(saved).info
    half, aside = (saved.with_name(f".{saved.name}.{each}") for each in ("abcd", "old.abcd"))
    half.mkdir()
    clear_leftovers(saved)
    assert not half.exists()
    half.mkdir()
    saved.rename(aside)
    clear_leftovers(saved)
    assert load_model(saved).info == before
    assert [path.name for path in saved.parent.glob(f".{saved.name}.*")] == []


def test_a_vocabulary_of_another_length_is_refused(model: CellModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has 2 genes but the model has 40"):
        save_model(model, ["A", "B"], tmp_path / "model", {})
    assert not list(tmp_path.iterdir())


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model directory"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.tsv"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ModelError, match=f"{name} is missing"):
        load_model(saved)


def edit_config(saved: Path, change: Callable[[dict], object]) -> None:
    document = json.loads((saved / "config.json").read_text())
    change(document)
    (saved / "config.json").write_text(json.dumps(document))


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: (d / "config.json").write_text("{"), "not JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "not a CellFoundry model's config"),
        (
            lambda d: edit_config(d, lambda c: c.update(format_version=2)),
            "format version 2, but only 1 is read",
        ),
        (
            lambda d: edit_config(d, lambda c: c.pop("architecture")),
            "architecture or info section is missing",
        ),
        (lambda d: edit_config(d, lambda c: c["architecture"].update(bins=-1)), "bins must be"),
        (
            lambda d: edit_config(d, lambda c: c["architecture"].update(bins=9)),
            "bins_BD (100, 32) instead of (9, 32)",
        ),
        (
            lambda d: edit_config(d, lambda c: c["architecture"].update(n_genes=39)),
            "has 40 genes but the model has 39",
        ),
        (lambda d: flip_last_byte(d / "model.safetensors"), "not the weights that were saved"),
        (lambda d: (d / "vocab.tsv").write_bytes(b"gene_name\tindex\n\xff\xfe"), "not UTF-8"),
        (
            lambda d: (d / "vocab.tsv").write_text((d / "vocab.tsv").read_text()[:-10]),
            "genes but the model has 40",
        ),
        (
            lambda d: (d / "vocab.tsv").write_text((d / "vocab.tsv").read_text().replace("GENE7", "TP53")),
            "not the genes that were saved",
        ),
    ],
)
def test_damage_is_named(saved: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(saved)
    with pytest.raises(ModelError) as caught:
        load_model(saved)
    assert said in str(caught.value)
    assert str(saved) in str(caught.value)


def test_weights_that_are_no_safetensors_are_refused_even_with_a_matching_hash(saved: Path) -> None:
    import hashlib

    (saved / "model.safetensors").write_bytes(b"not tensors at all")
    digest = hashlib.sha256(b"not tensors at all").hexdigest()
    edit_config(saved, lambda c: c["info"].update(weights_sha256=digest))
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_model(saved)
