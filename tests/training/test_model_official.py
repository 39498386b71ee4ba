"""Import of official files: the parts, and every refusal in one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cellfoundry_model.checkpoint import load_model
from cellfoundry_model.errors import ModelError
from cellfoundry_model.official import import_official, official_name

Parts = dict[str, dict[str, Any]]


def test_sizes_come_from_the_file(official_file: Path, model_genes: list[str], tmp_path: Path) -> None:
    config = import_official(official_file, tmp_path / "model", vocab_genes=model_genes).config
    assert (config.n_genes, config.bins, config.bin_alpha) == (40, 7, 0.8)
    assert (config.encoder_width, config.encoder_depth, config.encoder_heads) == (12, 2, 3)
    assert (config.decoder_width, config.decoder_depth, config.decoder_heads) == (10, 2, 2)
    assert (config.decoder_head_dim, config.favor_features) == (6, 9)
    assert (config.encoder_ffn_width, config.decoder_ffn_width) == (20, 26)


def test_every_tensor_arrives_bit_for_bit(
    official_file: Path, official_parts: Parts, model_genes: list[str], tmp_path: Path
) -> None:
    import_official(official_file, tmp_path / "model", vocab_genes=model_genes, part="rde")
    loaded = load_model(tmp_path / "model")
    theirs = official_parts["rde"]["state_dict"]
    ours = loaded.model.state_dict()
    assert len(ours) == len(theirs) - 1  # all but the redraw counter
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[f"model.{official_name(name)}"]), name
    assert loaded.info["part"] == "rde"
    assert loaded.info["other_parts"] == ["cell", "gene"]
    assert loaded.info["source"] == "official.ckpt"


def test_the_only_part_is_taken(official_parts: Parts, model_genes: list[str], tmp_path: Path) -> None:
    torch.save({"gene": official_parts["gene"]}, tmp_path / "one.ckpt")
    loaded = import_official(tmp_path / "one.ckpt", tmp_path / "model", vocab_genes=model_genes)
    assert (loaded.info["part"], loaded.info["other_parts"]) == ("gene", [])


def test_cell_is_taken_of_several(official_file: Path, model_genes: list[str], tmp_path: Path) -> None:
    assert import_official(official_file, tmp_path / "model", vocab_genes=model_genes).info["part"] == "cell"


def test_an_absent_part_is_told_which_there_are(
    official_parts: Parts, model_genes: list[str], tmp_path: Path
) -> None:
    del official_parts["gene"]
    torch.save(official_parts, tmp_path / "two.ckpt")
    with pytest.raises(ModelError, match=r"no part 'gene'.*cell, rde"):
        import_official(tmp_path / "two.ckpt", tmp_path / "model", vocab_genes=model_genes, part="gene")


def sizes(part: dict[str, Any]) -> dict[str, Any]:
    return part["config"]["model_config"]["mae_autobin"]


def drop(part: dict[str, Any], name: str) -> None:
    del part["state_dict"][f"model.{name}"]


def put(part: dict[str, Any], name: str, *shape: int) -> None:
    part["state_dict"][f"model.{name}"] = torch.zeros(shape)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["config"].update(model="mae"), "'mae' but only 'mae_autobin' is supported"),
        (
            lambda p: sizes(p)["encoder"].update(module_type="performer"),
            "the encoder's module_type is 'performer'",
        ),
        (lambda p: sizes(p)["decoder"].update(module_type="transformer"), "the decoder's module_type is"),
        (lambda p: sizes(p)["encoder"].update(norm_first=True), "the encoder's norm_first is True"),
        (lambda p: sizes(p)["encoder"].update(depth=3), "the number of encoder layers in its tensors is 2"),
        (
            lambda p: sizes(p)["encoder"].update(heads=5),
            "encoder_width 12 must be a multiple of encoder_heads 5",
        ),
        (lambda p: sizes(p)["decoder"].update(heads=4), "0.fn.to_q.weight (12, 10) instead of (24, 10)"),
        (lambda p: sizes(p).pop("encoder"), "its config lacks model_config.mae_autobin.encoder"),
        (lambda p: p["config"].pop("dataset_config"), "lacks dataset_config.rnaseq.bin_alpha"),
        (lambda p: sizes(p).update(mask_token_id="x"), "mask_token_id must be"),
        (lambda p: drop(p, "norm.bias"), "missing: norm.bias"),
        (lambda p: drop(p, "pos_emb.weight"), "tensor pos_emb.weight is missing"),
        (lambda p: put(p, "extra.weight", 3), "unexpected: extra.weight"),
        (lambda p: put(p, "to_final.weight", 1, 9), "to_final.weight (1, 9) instead of (1, 10)"),
        (lambda p: [put(p, f"extra{i}", 3) for i in range(9)], "extra0, extra1, extra2 and 6 more"),
        (lambda p: p["state_dict"].update({"model.norm.bias": 3.0}), "'model.norm.bias' is no tensor"),
        (lambda p: p["state_dict"].update(bert=torch.zeros(3)), "'bert' is no tensor named model...."),
    ],
)
def test_another_architecture_is_refused_and_named(
    official_parts: Parts, model_genes: list[str], tmp_path: Path, change: Callable[[Any], object], said: str
) -> None:
    change(official_parts["cell"])
    torch.save(official_parts, tmp_path / "other.ckpt")
    with pytest.raises(ModelError) as caught:
        import_official(tmp_path / "other.ckpt", tmp_path / "model", vocab_genes=model_genes)
    assert said in str(caught.value)
    assert "other.ckpt (part 'cell')" in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_a_vocabulary_of_another_length_is_refused(official_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="trained on 40 genes but the vocabulary has 3"):
        import_official(official_file, tmp_path / "model", vocab_genes=["A", "B", "C"])


class Malice:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_code_in_the_file_never_runs(official_parts: Parts, model_genes: list[str], tmp_path: Path) -> None:
    official_parts["cell"]["config"]["note"] = Malice(tmp_path / "pwned")
    torch.save(official_parts, tmp_path / "evil.ckpt")
    with pytest.raises(ModelError, match="not a checkpoint of plain tensors"):
        import_official(tmp_path / "evil.ckpt", tmp_path / "model", vocab_genes=model_genes)
    assert [path.name for path in tmp_path.iterdir()] == ["evil.ckpt"]


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut", b"\x80\x02}q\x00.", bytes(1000)])
def test_what_is_no_torch_file_is_refused(content: bytes, model_genes: list[str], tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.ckpt: ") as caught:
        import_official(tmp_path / "x.ckpt", tmp_path / "model", vocab_genes=model_genes)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(official_file: Path, model_genes: list[str], tmp_path: Path) -> None:
    official_file.write_bytes(official_file.read_bytes()[:-5000])
    with pytest.raises(ModelError, match="torch can read safely"):
        import_official(official_file, tmp_path / "model", vocab_genes=model_genes)


@pytest.mark.parametrize("content", [torch.zeros(3), {"model": torch.zeros(3)}, {"cell": {"config": {}}}])
def test_another_torch_file_is_refused(content: Any, model_genes: list[str], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ModelError, match="no part with a config and a state_dict"):
        import_official(tmp_path / "x.ckpt", tmp_path / "model", vocab_genes=model_genes)


def test_a_missing_file_is_named(model_genes: list[str], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        import_official(tmp_path / "nowhere.ckpt", tmp_path / "model", vocab_genes=model_genes)
