"""model.onnx and decoder.onnx of a model, run beside torch before anyone can use them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellfoundry_model.tokens import tokenize
from cellfoundry_serving.engines.onnx import OnnxEngine
from cellfoundry_serving.engines.padded import pad_cells
from cellfoundry_serving.engines.torch import TorchEngine
from cellfoundry_serving.export.bf16 import write_emulated
from cellfoundry_serving.export.check import (
    BARS,
    Bar,
    CheckedCells,
    Comparison,
    Progress,
    check,
    check_against,
    checked_cells,
    checked_note,
    compare_engines,
    floor_digits,
)
from cellfoundry_serving.export.int8 import NOISE_LIMITS, calibrate, write_int8
from cellfoundry_serving.export.layout import CONFIG_FILE, DECODER_FILE, ONNX_FILE, VOCABULARY_FILE
from cellfoundry_serving.export.onnx import write_cell_graph, write_decoder_graph
from cellfoundry_serving.export.real_cells import SHARES, TARGETS, calibration_and_compared

# Half of int8's bar is kept for cells unlike the compared ones: maps return to float32 until this holds.
SEARCHED_BAR = Bar(max_error=float("inf"), min_cosine=0.9995)


@dataclass(frozen=True)
class StagedOnnx:
    """Graphs that agree with torch, not yet in place.

    Attributes:
        comparisons: with torch, one an output.
        note: what was compared, for people.
        runnable: folder of the same graphs in a form that this machine's CPU can run.
        cell_batches: the cells whose embeddings were compared.
    """

    comparisons: list[Comparison]
    note: str
    runnable: Path
    cell_batches: list[CheckedCells]


def stage_onnx(
    reference: TorchEngine,
    staging: Path,
    precision: str,
    decoder: bool,
    source: str | Path | None,
    progress: Progress,
) -> StagedOnnx:
    """Writes the graphs to ``staging`` and compares each output with torch; ``source`` is of cells for int8.

    ServingError where an output is far from torch.
    """
    if precision == "int8":
        return stage_int8(reference, staging, decoder, source, progress)
    write_graphs(reference, staging / ONNX_FILE, staging, precision, decoder, progress)
    cells, note = checked_cells(len(reference.vocab_genes), decoder), checked_note(len(reference.vocab_genes))
    runnable = staging
    if precision == "bf16":
        runnable = stage_emulation(staging, decoder)
        note += ", on the CPU, where each operation's float32 result was rounded to bfloat16"
    comparisons = check_against(reference, OnnxEngine(runnable, "cpu"), BARS[precision], cells, progress)
    return StagedOnnx(comparisons, note, runnable, cells[:1])


def stage_emulation(staging: Path, decoder: bool) -> Path:
    """Folder with the bfloat16 graphs of ``staging`` in the form that a CPU runs."""
    emulation = staging / "emulation"
    emulation.mkdir()
    for name in (CONFIG_FILE, VOCABULARY_FILE):
        shutil.copyfile(staging / name, emulation / name)
    for name in (ONNX_FILE, *([DECODER_FILE] if decoder else [])):
        write_emulated(staging / name, emulation / name)
    return emulation


def stage_int8(
    reference: TorchEngine, staging: Path, decoder: bool, source: str | Path | None, progress: Progress
) -> StagedOnnx:
    """The encoder in int8, calibrated and compared on real cells; the decoder stays float32.

    Where that is far from torch, more of the encoder's maps stay float32, those whose inputs are rounded worst.
    """
    calibration, compared = calibration_and_compared(reference.vocab_genes, source)
    exact = staging / "float32.onnx"
    write_graphs(reference, exact, staging, "int8", decoder, progress)
    ranges = calibrate(exact, one_cell_inputs(calibration, len(reference.vocab_genes), progress))
    cells = list(compared)
    if decoder:
        few = compared[0].batch.select(np.arange(min(2, len(compared[0].batch))))
        cells += [CheckedCells("gene", few), CheckedCells("expression", few)]
    for max_noise in NOISE_LIMITS:
        kept, maps = write_int8(exact, staging / ONNX_FILE, ranges, max_noise)
        comparisons = compare_engines(reference, OnnxEngine(staging, "cpu"), cells, progress)
        if all(comparison.passes(SEARCHED_BAR) for comparison in comparisons):
            break
    check(comparisons, BARS["int8"])
    exact.unlink()
    return StagedOnnx(comparisons, int8_note(source, comparisons[0], kept, maps), staging, compared)


def int8_note(source: str | Path | None, cells: Comparison, kept: int, maps: int) -> str:
    """What an int8 export can promise, for people: it holds for cells like those it was calibrated on."""
    origin = "the donor that ships with the package" if source is None else Path(source).name
    note = (
        f"calibrated on cells of {origin}, compared on others of it, as they are and thinned to "
        f"between {max(SHARES):.0%} and {min(SHARES):.0%} of their counts, for T of {TARGETS[0]} to {TARGETS[-1]}; the "
        f"cosine of {floor_digits(cells.min_cosine)} holds for cells like these, others were not measured: "
        "use --calibrate with your own cells"
    )
    if kept:
        note += f"; {kept} of {maps} linear maps stay float32, since 8 bits round their inputs too coarsely"
    return note


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
    calibration: list[CheckedCells], n_genes: int, progress: Progress
) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """The cell graph's inputs for each cell alone, so that none is padded."""
    done, total = 0, sum(len(cells.batch) for cells in calibration)
    for cells in calibration:
        tokens = tokenize(cells.batch, n_genes=n_genes, target=cells.target)
        for cell in range(len(cells.batch)):
            progress("calibrate", done, total)
            value_1L, position_1L, length_1 = pad_cells(tokens, np.array([cell]), pad_position=n_genes + 2)
            yield {"value": value_1L, "position": position_1L, "length": length_1}
            done += 1
    progress("calibrate", total, total)
