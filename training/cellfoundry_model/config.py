"""Sizes of a model: one frozen dataclass, read from and written to a model directory's config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from cellfoundry_model.errors import ModelError


@dataclass(frozen=True)
class ModelConfig:
    """Every size of a CellModel; nothing else about its shape is decided anywhere.

    Positions are the genes, then T (target log10 total), then S (source log10 total).

    Attributes:
        n_genes: length of the gene vocabulary.
        bins: rows of the value embedding's table.
        bin_alpha: weight of the residual in the value embedding's second layer.
        mask_token_id: input value that stands for "masked".
        pad_token_id: input value that stands for padding.
        encoder_width: width of the encoder's residual stream, a multiple of encoder_heads.
        encoder_depth: encoder layers.
        encoder_heads: encoder attention heads.
        decoder_width: width of the decoder's residual stream.
        decoder_depth: decoder layers.
        decoder_heads: decoder attention heads.
        decoder_head_dim: channels of a decoder head; heads x head_dim may differ from decoder_width.
        favor_features: random features of the decoder's FAVOR+ attention.
        encoder_ffn_width: hidden channels of an encoder feed-forward layer; default 4 x encoder_width.
        decoder_ffn_width: hidden channels of a decoder feed-forward layer; default 4 x decoder_width.
    """

    n_genes: int
    bins: int
    bin_alpha: float
    mask_token_id: int
    pad_token_id: int
    encoder_width: int
    encoder_depth: int
    encoder_heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    decoder_head_dim: int
    favor_features: int
    encoder_ffn_width: int = 0
    decoder_ffn_width: int = 0

    def __post_init__(self) -> None:
        for side in ("encoder", "decoder"):
            if getattr(self, f"{side}_ffn_width") == 0 and isinstance(getattr(self, f"{side}_width"), int):
                object.__setattr__(self, f"{side}_ffn_width", 4 * getattr(self, f"{side}_width"))
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "bin_alpha":
                fits, wanted = isinstance(value, (int, float)) and math.isfinite(value), "a finite number"
            else:
                fits, wanted = isinstance(value, int) and value > 0, "a positive number"
            if isinstance(value, bool) or not fits:
                raise ModelError(f"model config: {field.name} must be {wanted}, it is {value!r}; correct it.")
        if self.encoder_width % self.encoder_heads:
            raise ModelError(
                f"model config: encoder_width {self.encoder_width} must be a multiple of encoder_heads "
                f"{self.encoder_heads}; change one of them."
            )
        if self.mask_token_id == self.pad_token_id:
            raise ModelError(
                f"model config: mask_token_id and pad_token_id are both {self.pad_token_id}; change one."
            )

    @property
    def n_positions(self) -> int:
        """Positions of a cell: its genes, T and S."""
        return self.n_genes + 2

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from a mapping; ModelError names a field that is unknown, missing or out of range."""
        known = {field.name: field for field in fields(cls)}
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ModelError(
                f"model config: unknown field {unknown[0]!r}; the fields are {', '.join(known)}."
            )
        missing = [name for name, field in known.items() if field.default is MISSING and name not in values]
        if missing:
            raise ModelError(f"model config: field {missing[0]!r} is missing; add it.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain numbers, ready for JSON or YAML."""
        return asdict(self)
