"""ONNX export of the cell-embedding graph, dynamic in cells and tokens; the model's facts are inside."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cellfoundry_model.checkpoint import LoadedModel
from cellfoundry_serving.export.graph import ATTENTION_OPSET, CellEmbeddingGraph
from cellfoundry_serving.export.layout import METADATA_KEY


def write_onnx(loaded: LoadedModel, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes the graph of ``loaded`` (on CPU) with dynamic batch and length, metadata inside."""
    graph = CellEmbeddingGraph(loaded.model, dtype).eval()
    example = (torch.ones(2, 5), torch.zeros(2, 5, dtype=torch.int64), torch.tensor([5, 4]))
    batch, length = torch.export.Dim("cells"), torch.export.Dim("tokens", min=3)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            opset_version=ATTENTION_OPSET,
            verbose=False,
            input_names=["value", "position", "length"],
            output_names=["cell_embedding"],
            dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}, {0: batch}),
        )
        assert program is not None  # None is for the exporter's older form only
        # The exporter notes source paths of this machine on every node.
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()
        program.model.metadata_props[METADATA_KEY] = json.dumps(metadata(loaded))
        program.save(path, external_data=False)


def metadata(loaded: LoadedModel) -> dict[str, Any]:
    """Architecture, and info with the hashes of weights and vocabulary."""
    return {"architecture": loaded.config.to_dict(), "info": loaded.info}


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
