"""Sizes of a model: presets, the way to a mapping and back, and what a wrong field is told."""

from __future__ import annotations

import json

import pytest

from cellfoundry_model.config import ModelConfig
from cellfoundry_model.errors import ModelError
from cellfoundry_model.presets import PRESETS, favor_feature_count


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_way_through_json(name: str) -> None:
    config = PRESETS[name]
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.n_genes == 19_264
    assert config.n_positions == 19_266
    assert config.favor_features == favor_feature_count(config.decoder_head_dim)


def test_feature_count_of_the_published_model() -> None:
    assert favor_feature_count(64) == 266


def test_feed_forward_width_is_four_times_the_width_unless_given() -> None:
    fields = PRESETS["tiny"].to_dict()
    del fields["encoder_ffn_width"], fields["decoder_ffn_width"]
    config = ModelConfig.from_dict(fields)
    assert (config.encoder_ffn_width, config.decoder_ffn_width) == (
        4 * config.encoder_width,
        4 * config.decoder_width,
    )
    assert ModelConfig.from_dict(fields | {"encoder_ffn_width": 9}).encoder_ffn_width == 9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"depth": 3}, "unknown field 'depth'"),
        ({"encoder_width": 65}, "encoder_width 65 must be a multiple of encoder_heads"),
        ({"bins": 0}, "bins must be a positive number, it is 0"),
        ({"decoder_width": -8}, "decoder_width must be"),
        ({"decoder_width": "64"}, "decoder_width must be a positive number, it is '64'"),
        ({"encoder_depth": True}, "encoder_depth must be"),
        ({"encoder_width": None}, "encoder_width must be"),
        ({"bin_alpha": float("nan")}, "bin_alpha must be a finite number"),
        ({"bin_alpha": "1"}, "bin_alpha must be a finite number"),
        ({"mask_token_id": 103}, "are both 103"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        ModelConfig.from_dict(PRESETS["tiny"].to_dict() | change)
    assert said in str(caught.value)


def test_a_value_embedding_may_have_no_residual() -> None:
    assert ModelConfig.from_dict(PRESETS["tiny"].to_dict() | {"bin_alpha": 0}).bin_alpha == 0


def test_a_missing_field_is_named() -> None:
    fields = PRESETS["tiny"].to_dict()
    del fields["bins"]
    with pytest.raises(ModelError, match="field 'bins' is missing"):
        ModelConfig.from_dict(fields)
