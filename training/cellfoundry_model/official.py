"""Import of an official scFoundation (xTrimoGene) checkpoint into a model directory.

The file is a torch.save of {part: {"config": ..., "state_dict": ...}}, parts being cell, rde, gene.
It is read with weights_only=True: code hidden in its pickle never runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import LoadedModel, load_weights, save_model
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.errors import ModelError

ARCHITECTURE = "mae_autobin"
PREFIX = "model."
# A training-time counter of the official Performer; it has no part in the result.
UNUSED = "decoder.performer.calls_since_last_redraw"

_ENCODER_STEM = "encoder.transformer_encoder."
_DECODER_STEM = "decoder.performer.net.layers."
_TOP = {
    "value_embedding.hidden": "token_emb.mlp",
    "value_embedding.mix": "token_emb.mlp2",
    "position_embedding": "pos_emb",
    "encoder.norm": "encoder.norm",
    "decoder_embed": "decoder_embed",
    "decoder.norm": "decoder.norm",
    "norm": "norm",
    "to_expression": "to_final",
}
_BARE = {
    "value_embedding.bins_BD": "token_emb.emb.weight",
    "value_embedding.mask_1D": "token_emb.emb_mask.weight",
    "value_embedding.pad_1D": "token_emb.emb_pad.weight",
}
_ENCODER_LAYER = {
    "qkv.weight": "self_attn.in_proj_weight",
    "qkv.bias": "self_attn.in_proj_bias",
    "attention_out": "self_attn.out_proj",
    "attention_norm": "norm1",
    "ffn_in": "linear1",
    "ffn_out": "linear2",
    "ffn_norm": "norm2",
}
_DECODER_LAYER = {
    "attention_norm": "0.norm",
    "projection_MK": "0.fn.fast_attention.projection_matrix",
    "query": "0.fn.to_q",
    "key": "0.fn.to_k",
    "value": "0.fn.to_v",
    "attention_out": "0.fn.to_out",
    "ffn_norm": "1.norm",
    "ffn_in": "1.fn.fn.w1",
    "ffn_out": "1.fn.fn.w2",
}


def import_official(
    ckpt: str | Path, out_dir: str | Path, *, vocab_genes: Sequence[str], part: str | None = None
) -> LoadedModel:
    """Convert one part of an official checkpoint and write it as a model directory.

    Args:
        ckpt: the official file.
        out_dir: model directory to write.
        vocab_genes: gene names in the order of the checkpoint's positions.
        part: "cell", "rde" or "gene"; None takes the only part, or "cell" of several
            (``info["other_parts"]`` lists the rest).

    Raises:
        ModelError: unreadable or untrusted file, absent part, another architecture, tensors that do not fit,
            or a vocabulary of another length.
    """
    parts = _read_parts(Path(ckpt))
    chosen = _choose_part(parts, part, ckpt)
    source = f"{ckpt} (part {chosen!r})"
    config_tree, weights = parts[chosen]["config"], _plain_weights(parts[chosen]["state_dict"], source)
    config = _read_sizes(config_tree, weights, source)
    if len(vocab_genes) != config.n_genes:
        raise ModelError(
            f"{source}: it was trained on {config.n_genes:,} genes but the vocabulary has "
            f"{len(vocab_genes):,}; give the vocabulary of this checkpoint."
        )
    model = CellModel(config)
    load_weights(model, weights, source, {own: official_name(own) for own in model.state_dict()})
    extra = {
        "part": chosen,
        "other_parts": [name for name in parts if name != chosen],
        "source": Path(ckpt).name,
    }
    info = save_model(model, vocab_genes, out_dir, extra)
    return LoadedModel(model.eval(), config, tuple(vocab_genes), info)


def official_name(own: str) -> str:
    """The official name (without its "model." prefix) of one of our tensors."""
    if own in _BARE:
        return _BARE[own]
    side, _, rest = own.partition(".layers.")
    if rest:
        index, _, name = rest.partition(".")
        names, stem = (
            (_ENCODER_LAYER, f"{_ENCODER_STEM}{index}.")
            if side == "encoder"
            else (_DECODER_LAYER, f"{_DECODER_STEM}{index}.")
        )
    else:
        names, stem, name = _TOP, "", own
    if name in names:
        return stem + names[name]
    module, _, kind = name.rpartition(".")
    return f"{stem}{names[module]}.{kind}"


def _read_parts(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the path of an official checkpoint.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the unpickler raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{path}: not a checkpoint of plain tensors that torch can read safely ({reason.rstrip('.')}); "
            "download it again from its official source."
        ) from error
    parts = content if isinstance(content, dict) else {}
    parts = {
        name: part
        for name, part in parts.items()
        if isinstance(part, dict)
        and isinstance(part.get("config"), dict)
        and isinstance(part.get("state_dict"), dict)
    }
    if not parts:
        raise ModelError(
            f"{path}: no part with a config and a state_dict in it; give an official scFoundation checkpoint."
        )
    return parts


def _choose_part(parts: Mapping[str, Any], part: str | None, ckpt: str | Path) -> str:
    if part is None:
        return "cell" if "cell" in parts else next(iter(parts))
    if part not in parts:
        raise ModelError(f"{ckpt}: has no part {part!r}; choose one of those it holds: {', '.join(parts)}.")
    return part


def _plain_weights(state_dict: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    weights = {}
    for name, tensor in state_dict.items():
        if not isinstance(tensor, Tensor) or not str(name).startswith(PREFIX):
            raise ModelError(
                f"{source}: {name!r} is no tensor named {PREFIX}..., as in the mae_autobin architecture; "
                "give an official scFoundation checkpoint."
            )
        weights[name.removeprefix(PREFIX)] = tensor
    weights.pop(UNUSED, None)
    return weights


def _read_sizes(config: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> ModelConfig:
    """Sizes from the checkpoint's tensors, and from its config where the tensors do not tell."""

    def setting(*path: str) -> Any:
        value: Any = config
        for key in path:
            if not isinstance(value, Mapping) or key not in value:
                raise ModelError(
                    f"{source}: its config lacks {'.'.join(path)}; give an official scFoundation checkpoint."
                )
            value = value[key]
        return value

    def shape(name: str) -> torch.Size:
        if name not in weights or weights[name].dim() != 2:
            raise ModelError(
                f"{source}: tensor {name} is missing or no matrix; use an intact file of this architecture."
            )
        return weights[name].shape

    def demand(found: Any, wanted: Any, what: str) -> None:
        if found != wanted:
            raise ModelError(
                f"{source}: {what} is {found!r} but only {wanted!r} is supported; "
                "give an official scFoundation checkpoint."
            )

    demand(setting("model"), ARCHITECTURE, "the architecture (config.model)")
    sizes = ("model_config", ARCHITECTURE)
    demand(setting(*sizes, "encoder", "module_type"), "transformer", "the encoder's module_type")
    demand(setting(*sizes, "decoder", "module_type"), "performer", "the decoder's module_type")
    demand(bool(setting(*sizes, "encoder").get("norm_first", False)), False, "the encoder's norm_first")
    for side, stem in (("encoder", _ENCODER_STEM), ("decoder", _DECODER_STEM)):
        depth = setting(*sizes, side, "depth")
        demand(_count_layers(weights, stem), depth, f"the number of {side} layers in its tensors")
    favor_features, head_dim = shape(f"{_DECODER_STEM}0.0.fn.fast_attention.projection_matrix")
    try:
        return ModelConfig(
            n_genes=shape("pos_emb.weight")[0] - 3,
            bins=shape("token_emb.emb.weight")[0],
            bin_alpha=setting("dataset_config", "rnaseq", "bin_alpha"),
            mask_token_id=setting(*sizes, "mask_token_id"),
            pad_token_id=setting(*sizes, "pad_token_id"),
            encoder_width=shape("pos_emb.weight")[1],
            encoder_depth=setting(*sizes, "encoder", "depth"),
            encoder_heads=setting(*sizes, "encoder", "heads"),
            encoder_ffn_width=shape(f"{_ENCODER_STEM}0.linear1.weight")[0],
            decoder_width=shape("decoder_embed.weight")[0],
            decoder_depth=setting(*sizes, "decoder", "depth"),
            decoder_heads=setting(*sizes, "decoder", "heads"),
            decoder_head_dim=head_dim,
            decoder_ffn_width=shape(f"{_DECODER_STEM}0.1.fn.fn.w1.weight")[0],
            favor_features=favor_features,
        )
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error


def _count_layers(weights: Mapping[str, Tensor], stem: str) -> int:
    return len({name[len(stem) :].split(".")[0] for name in weights if name.startswith(stem)})
