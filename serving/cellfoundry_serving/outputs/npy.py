"""``.npy``: the bare array, float32, rows in the source's order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellfoundry_serving.outputs.base import EmbeddingWriter, OutputSpec


class NpyWriter(EmbeddingWriter):
    """Writes through plain file appends, so that a large output never fills memory with mapped pages."""

    def __init__(self, path: Path, spec: OutputSpec) -> None:
        super().__init__(path, spec)
        self._file = path.open("wb")
        header = {"descr": "<f4", "fortran_order": False, "shape": spec.shape}
        np.lib.format.write_array_header_2_0(self._file, header)

    def write(self, first: int, block: npt.NDArray[np.float32]) -> None:
        """Appends the block."""
        self._file.write(np.ascontiguousarray(block, dtype="<f4").data)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
