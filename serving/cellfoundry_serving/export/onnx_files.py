"""model.onnx and decoder.onnx of a model, run beside torch before anyone can use them."""

from __future__ import annotations

from pathlib import Path

from cellfoundry_serving.engines.onnx import OnnxEngine
from cellfoundry_serving.engines.torch import TorchEngine
from cellfoundry_serving.export.check import BARS, Comparison, check_against, checked_batches
from cellfoundry_serving.export.layout import DECODER_FILE, ONNX_FILE
from cellfoundry_serving.export.onnx import write_cell_graph, write_decoder_graph


def stage_onnx(reference: TorchEngine, staging: Path, precision: str, decoder: bool) -> list[Comparison]:
    """Writes the graphs to ``staging`` and compares each output with torch; ServingError where one is far off."""
    write_cell_graph(reference.loaded, staging / ONNX_FILE, precision, tokens=decoder)
    if decoder:
        write_decoder_graph(reference.loaded, staging / DECODER_FILE, precision)
    batches = checked_batches(len(reference.vocab_genes), decoder)
    return check_against(reference, OnnxEngine(staging, "cpu"), BARS[precision], batches)
