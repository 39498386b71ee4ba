"""ONNX export of the two graphs, dynamic in cells and tokens; the model's facts are inside each file."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cellfoundry_model.checkpoint import LoadedModel
from cellfoundry_serving.export.graph import ATTENTION_OPSET, CellEmbeddingGraph, DecoderGraph
from cellfoundry_serving.export.layout import METADATA_KEY
from cellfoundry_serving.export.packed_graph import PackedCellGraph

# int8 is made of the float32 graph.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
# The dynamic axes of each input: its first ones, by name.
CELL_INPUTS = {"value": ("cells", "tokens"), "position": ("cells", "tokens"), "length": ("cells",)}
PACKED_INPUTS = {"value": ("all_tokens",), "position": ("all_tokens",), "cu_seqlens": ("bounds",)}
DECODER_INPUTS = {"token_embedding": ("cells", "tokens"), "position": ("cells", "tokens")}
SMALLEST = {"cells": 1, "tokens": 3, "all_tokens": 3, "bounds": 2}
DECODER_OUTPUTS = ("gene_embedding", "expression")


def write_cell_graph(loaded: LoadedModel, path: Path, precision: str, *, tokens: bool = False) -> None:
    """Writes the encoder and its pooling (``loaded`` is on CPU); ``tokens`` adds the output the decoder takes."""
    graph = CellEmbeddingGraph(loaded.model, DTYPES[precision], tokens)
    example = (torch.ones(2, 5), torch.zeros(2, 5, dtype=torch.int64), torch.tensor([5, 4]))
    outputs = ("cell_embedding", "token_embedding") if tokens else ("cell_embedding",)
    write_graph(graph, example, CELL_INPUTS, outputs, metadata(loaded, precision), path)


def write_packed_cell_graph(loaded: LoadedModel, path: Path, precision: str) -> None:
    """Writes the encoder and its pooling over packed tokens, for TensorRT (see ``packed_graph.py``)."""
    graph = PackedCellGraph(loaded.model, DTYPES[precision])
    example = (
        torch.ones(9),
        torch.zeros(9, dtype=torch.int64),
        torch.tensor([0, 5, 9], dtype=torch.int32),
    )
    write_graph(graph, example, PACKED_INPUTS, ("cell_embedding",), metadata(loaded, precision), path)


def write_decoder_graph(loaded: LoadedModel, path: Path, precision: str) -> None:
    """Writes the decoder over all positions, which takes the cell graph's token embeddings."""
    graph = DecoderGraph(loaded.model, DTYPES[precision])
    example = (
        torch.zeros(2, 5, loaded.config.encoder_width),
        torch.arange(10).reshape(2, 5) % loaded.config.n_positions,
    )
    write_graph(graph, example, DECODER_INPUTS, DECODER_OUTPUTS, metadata(loaded, precision), path)


def write_graph(
    graph: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Mapping[str, tuple[str, ...]],
    outputs: tuple[str, ...],
    facts: dict[str, Any],
    path: Path,
) -> None:
    """Writes one graph; ``inputs`` names them in the order of ``example``, and their dynamic axes."""
    axes = {name: torch.export.Dim(name, min=smallest) for name, smallest in SMALLEST.items()}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.eval(),
            example,
            dynamo=True,
            opset_version=ATTENTION_OPSET,
            verbose=False,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple(
                {axis: axes[name] for axis, name in enumerate(names)} for names in inputs.values()
            ),
        )
        assert program is not None  # None is for the exporter's older form only
        # The exporter notes source paths of this machine on every node.
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()
        program.model.metadata_props[METADATA_KEY] = json.dumps(facts)
        program.save(path, external_data=False)


def metadata(loaded: LoadedModel, precision: str) -> dict[str, Any]:
    """Architecture, info with the hashes of weights and vocabulary, and the precision."""
    return {"architecture": loaded.config.to_dict(), "info": loaded.info, "precision": precision}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's progress, notes and deprecation warnings off the console; errors still raise."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
