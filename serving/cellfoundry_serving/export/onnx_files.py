"""model.onnx and decoder.onnx of a model, run beside torch before anyone can use them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.embedder import Output
from cellfoundry_model.tokens import tokenize
from cellfoundry_serving.engines.onnx import OnnxEngine
from cellfoundry_serving.engines.padded import pad_cells
from cellfoundry_serving.engines.torch import TorchEngine
from cellfoundry_serving.export.bf16 import write_emulated
from cellfoundry_serving.export.check import (
    BARS,
    Comparison,
    Progress,
    check,
    check_against,
    checked_batches,
    compare_engines,
)
from cellfoundry_serving.export.int8 import NOISE_LIMITS, calibrate, write_int8
from cellfoundry_serving.export.layout import CONFIG_FILE, DECODER_FILE, ONNX_FILE, VOCABULARY_FILE
from cellfoundry_serving.export.onnx import write_cell_graph, write_decoder_graph
from cellfoundry_serving.export.real_cells import real_cells


def stage_onnx(
    reference: TorchEngine,
    staging: Path,
    precision: str,
    decoder: bool,
    source: str | Path | None,
    progress: Progress,
) -> tuple[list[Comparison], str]:
    """Writes the graphs to ``staging`` and compares each output with torch; ``source`` is of cells for int8.

    Returns the comparisons and a note for people, or "". ServingError where an output is far from torch.
    """
    if precision == "int8":
        return stage_int8(reference, staging, decoder, source, progress)
    write_graphs(reference, staging / ONNX_FILE, staging, precision, decoder, progress)
    batches = checked_batches(len(reference.vocab_genes), decoder)
    if precision != "bf16":
        return check_against(reference, OnnxEngine(staging, "cpu"), BARS[precision], batches, progress), ""
    emulation = staging / "emulation"
    emulation.mkdir()
    for name in (CONFIG_FILE, VOCABULARY_FILE):
        shutil.copyfile(staging / name, emulation / name)
    for name in (ONNX_FILE, *([DECODER_FILE] if decoder else [])):
        write_emulated(staging / name, emulation / name)
    comparisons = check_against(reference, OnnxEngine(emulation, "cpu"), BARS[precision], batches, progress)
    return comparisons, "compared on the CPU, where each operation's float32 result was rounded to bfloat16"


def stage_int8(
    reference: TorchEngine, staging: Path, decoder: bool, source: str | Path | None, progress: Progress
) -> tuple[list[Comparison], str]:
    """The encoder in int8, calibrated and compared on real cells; the decoder stays float32.

    Where that is far from torch, more of the encoder's maps stay float32, those whose inputs are rounded worst.
    """
    calibration, compared = real_cells(reference.vocab_genes, source)
    exact = staging / "float32.onnx"
    write_graphs(reference, exact, staging, "int8", decoder, progress)
    ranges = calibrate(exact, one_cell_inputs(calibration, len(reference.vocab_genes), progress))
    batches: dict[Output, CellBatch] = {"cell": compared}
    if decoder:
        few = compared.select(np.arange(min(2, len(compared))))
        batches |= {"gene": few, "expression": few}
    for max_noise in NOISE_LIMITS:
        kept, maps = write_int8(exact, staging / ONNX_FILE, ranges, max_noise)
        comparisons = compare_engines(reference, OnnxEngine(staging, "cpu"), batches, progress)
        if all(comparison.passes(BARS["int8"]) for comparison in comparisons):
            break
    check(comparisons, BARS["int8"])
    exact.unlink()
    note = f"calibrated on {len(calibration)} real cells, compared on others"
    if kept:
        note += f"; {kept} of {maps} linear maps stay float32, since 8 bits round their inputs too coarsely"
    return comparisons, note


def write_graphs(
    reference: TorchEngine, cell_file: Path, staging: Path, precision: str, decoder: bool, progress: Progress
) -> None:
    """The cell graph and, with ``decoder``, the second one; in float32 where they are to become int8."""
    progress("write graphs", 0, 1 + decoder)
    write_cell_graph(reference.loaded, cell_file, precision, tokens=decoder)
    progress("write graphs", 1, 1 + decoder)
    if decoder:
        write_decoder_graph(reference.loaded, staging / DECODER_FILE, precision)
        progress("write graphs", 2, 2)


def one_cell_inputs(
    batch: CellBatch, n_genes: int, progress: Progress
) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """The cell graph's inputs for each cell alone, so that none is padded."""
    tokens = tokenize(batch, n_genes=n_genes)
    for cell in range(len(batch)):
        progress("calibrate", cell, len(batch))
        value_1L, position_1L, length_1 = pad_cells(tokens, np.array([cell]), pad_position=n_genes + 2)
        yield {"value": value_1L, "position": position_1L, "length": length_1}
    progress("calibrate", len(batch), len(batch))
