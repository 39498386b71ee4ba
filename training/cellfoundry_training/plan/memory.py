"""Bytes that one rank must hold: weights, gradients, optimizer, activations.

Weights and optimizer are those of DeepSpeed 0.19's ZeRO optimizers with torch's AdamW (Rajbhandari et al. 2020, "ZeRO",
section 3: 2 + 2 + 12 bytes a parameter in mixed precision). Activations are what autograd saves of our layers when the
Triton kernels run; a test counts them in the running model.

Legend: D encoder width, F its feed-forward width, W decoder width, I decoder heads x head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from cellfoundry_model.config import ModelConfig
from cellfoundry_training.config import PretrainConfig
from cellfoundry_training.plan.workload import Workload

FLOAT = 4
# CUDA context, cuBLAS and NCCL buffers, and what the caching allocator cannot hand out again: assumed, not measured.
CONTEXT_BYTES = 2e9


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank.

    Attributes:
        weights: that forward and backward use.
        gradients: of them, kept until the optimizer's step.
        optimizer: float32 masters, two moments, and the float32 gradients of a step.
        activations: saved for backward, or their checkpoints.
        working: the layer that is being computed, its gradients included.
        context: of the device's libraries.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    working: float
    context: float = CONTEXT_BYTES

    @property
    def total(self) -> float:
        """All together."""
        return sum(getattr(self, field.name) for field in fields(self))


def rank_memory(
    config: PretrainConfig, model: ModelConfig, work: Workload, parameters: int, cells: float, ranks: int
) -> RankMemory:
    """A rank that puts ``cells`` cells through the model at once, in a run of ``ranks`` ranks."""
    size = 2 if config.precision == "bf16" else FLOAT
    stage = config.zero_stage
    encoder = cells * work.tokens * encoder_layer_bytes(model, size)
    decoder = cells * work.rows * decoder_layer_bytes(model, size)
    return RankMemory(
        weights=size * parameters / (ranks if stage == 3 else 1),
        gradients=size * parameters / (ranks if stage >= 2 else 1),
        # Master, its gradient and two moments; without ZeRO in float32 weights and gradients are their own masters.
        optimizer=(4 if size == 2 or stage else 2) * FLOAT * parameters / (ranks if stage else 1),
        activations=cells
        * (checkpoint_bytes if config.activation_checkpointing else activation_bytes)(model, size, work),
        working=max(encoder, decoder),
    )


def activation_bytes(model: ModelConfig, size: int, work: Workload) -> float:
    """Saved for backward for one cell, in elements of ``size`` bytes."""
    encoder = model.encoder_depth * work.tokens * encoder_layer_bytes(model, size)
    decoder = (model.decoder_depth - 1) * work.rows * decoder_layer_bytes(model, size)
    return encoder + decoder + _last_layer_bytes(model, size, work) + _ends_bytes(model, size, work)


def checkpoint_bytes(model: ModelConfig, size: int, work: Workload) -> float:
    """Saved for one cell where layers keep their input alone and are computed again in backward."""
    encoder = model.encoder_depth * work.tokens * model.encoder_width
    decoder = model.decoder_depth * work.rows * model.decoder_width
    return size * (encoder + decoder) + _ends_bytes(model, size, work)


def encoder_layer_bytes(model: ModelConfig, size: int) -> int:
    """Saved by one encoder layer for a token.

    Input, q, k, v, attended values, both sums before the norms, the first norm's output (8 D in all), the hidden layer
    after ReLU (F); in float32 a log-sum-exp a head, a mean and a deviation a norm.
    """
    return size * (8 * model.encoder_width + model.encoder_ffn_width) + FLOAT * (model.encoder_heads + 4)


def decoder_layer_bytes(model: ModelConfig, size: int) -> int:
    """Saved by one decoder layer for a row.

    Input and its norm, the sum after attention and its norm (4 W), q, k, v, attended values (4 I), the hidden layer
    before and after GELU (2 F); in float32 two numbers a head and query, a mean and a deviation a norm. What a cell and
    a head keep once (266 features x 64 channels, published) is left out.
    """
    return _key_bytes(model, size) + _query_bytes(model, size)


def _key_bytes(model: ModelConfig, size: int) -> int:
    """Of a row that keys and values come from: input, norm, k, v, the norm's mean and deviation."""
    return size * 2 * (model.decoder_width + _inner(model)) + FLOAT * 2


def _query_bytes(model: ModelConfig, size: int) -> int:
    """Of a row that a layer computes: q, attended values, the second half of the layer."""
    wide = 2 * model.decoder_width + 2 * _inner(model) + 2 * model.decoder_ffn_width
    return size * wide + FLOAT * (2 * model.decoder_heads + 2)


def _inner(model: ModelConfig) -> int:
    return model.decoder_heads * model.decoder_head_dim


def _last_layer_bytes(model: ModelConfig, size: int, work: Workload) -> float:
    """The last layer computes the chosen positions alone, whose input and norm it keeps a second time."""
    again = size * 2 * model.decoder_width + FLOAT * 2
    return work.rows * _key_bytes(model, size) + work.asked * (_query_bytes(model, size) + again)


def _ends_bytes(model: ModelConfig, size: int, work: Workload) -> float:
    """Around the layers: the encoder's last norm, what enters the decoder, the last norms, the head."""
    encoder = (work.tokens + work.entered) * model.encoder_width
    return size * (encoder + 3 * work.asked * model.decoder_width)
