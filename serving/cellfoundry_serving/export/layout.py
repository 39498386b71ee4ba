"""Names inside a model directory and inside an exported file."""

from __future__ import annotations

CONFIG_FILE = "config.json"
VOCABULARY_FILE = "vocab.tsv"
WEIGHTS_FILE = "model.safetensors"
ONNX_FILE = "model.onnx"  # tokens to cell embeddings
DECODER_FILE = "decoder.onnx"  # token embeddings to gene embeddings and expression
PLAN_FILE = "model.plan"
PLAN_METADATA_FILE = "model.plan.json"
CARD_FILE = "MODEL_CARD.md"
METADATA_KEY = "cellfoundry"  # JSON: architecture, info, precision
