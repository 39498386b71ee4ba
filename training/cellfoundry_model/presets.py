"""Named model sizes over the 19,264-gene vocabulary.

"100m" is the published shape (119 M parameters with its embeddings). Most of the small ones is the position
table (19,267 rows), so their names count it in. "tiny" is for trying things on a CPU: narrow where the
decoder meets all 19,266 positions, so that a minute and a half of training sees hundreds of steps.
"""

from __future__ import annotations

import math

from cellfoundry_model.config import ModelConfig


def favor_feature_count(head_dim: int) -> int:
    """Random features for a head of ``head_dim`` channels: head_dim * ln(head_dim), rounded down."""
    return int(head_dim * math.log(head_dim))


def _preset(encoder: tuple[int, int, int], decoder: tuple[int, int, int, int]) -> ModelConfig:
    """``encoder`` is (depth, width, heads), ``decoder`` is (depth, width, heads, head_dim)."""
    return ModelConfig(
        n_genes=19_264,
        bins=100,
        bin_alpha=1.0,
        mask_token_id=102,
        pad_token_id=103,
        encoder_depth=encoder[0],
        encoder_width=encoder[1],
        encoder_heads=encoder[2],
        decoder_depth=decoder[0],
        decoder_width=decoder[1],
        decoder_heads=decoder[2],
        decoder_head_dim=decoder[3],
        favor_features=favor_feature_count(decoder[3]),
    )


PRESETS: dict[str, ModelConfig] = {
    "tiny": _preset((2, 32, 2), (1, 16, 1, 16)),
    "3m": _preset((3, 128, 4), (2, 64, 4, 16)),
    "10m": _preset((6, 256, 8), (3, 128, 4, 32)),
    "100m": _preset((12, 768, 12), (6, 512, 8, 64)),
    "300m": _preset((20, 1024, 16), (8, 512, 8, 64)),
}
