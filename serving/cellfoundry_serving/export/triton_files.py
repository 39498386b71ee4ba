"""The ragged form of an ONNX export, run as Triton feeds it and compared with torch."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellfoundry_serving.engines.onnx import OnnxEngine
from cellfoundry_serving.engines.torch import TorchEngine
from cellfoundry_serving.export.check import BARS, Comparison, Progress, check, compare_engines
from cellfoundry_serving.export.layout import CONFIG_FILE, ONNX_FILE, VOCABULARY_FILE
from cellfoundry_serving.export.onnx_files import StagedOnnx
from cellfoundry_serving.export.ragged import write_ragged


class RaggedEngine(OnnxEngine):
    """Runs a ragged graph as Triton does: the cells of a batch one after another, each with its length."""

    def run(
        self,
        value_BL: npt.NDArray[np.float32],
        position_BL: npt.NDArray[np.int64],
        length_B: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """See PaddedEngine.run."""
        is_token_BL = np.arange(value_BL.shape[1]) < length_B[:, None]
        feeds = {
            "value": value_BL[is_token_BL],
            "position": position_BL[is_token_BL],
            "length": length_B.astype(np.int32),
        }
        return self._session.run(["cell_embedding"], feeds)[0]


def stage_ragged(
    reference: TorchEngine, staging: Path, staged: StagedOnnx, precision: str, progress: Progress
) -> tuple[Path, list[Comparison]]:
    """Writes the ragged form of ``staging``'s model.onnx and compares it with torch on the cells of the export's check.

    Returns the file and the comparison; ServingError where it is far from torch.
    """
    pad_position = len(reference.vocab_genes) + 2
    folder, runnable = staging / "ragged", staging / "ragged-runnable"
    for each, source in ((folder, staging), (runnable, staged.runnable)):
        each.mkdir()
        write_ragged(source / ONNX_FILE, each / ONNX_FILE, pad_position)
    for name in (CONFIG_FILE, VOCABULARY_FILE):
        shutil.copyfile(staging / name, runnable / name)
    compared = compare_engines(reference, RaggedEngine(runnable, "cpu"), staged.cell_batches, progress)
    comparisons = [replace(comparison, output="cell, joined as Triton does") for comparison in compared]
    check(comparisons, BARS[precision])
    return folder / ONNX_FILE, comparisons
