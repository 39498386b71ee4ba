"""ONNX Runtime, on CPU or CUDA, from a directory made by ``cellfoundry model export --format onnx``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.engines.padded import PaddedEngine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.layout import METADATA_KEY, ONNX_FILE, VOCABULARY_FILE

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
MAX_SCORE_BYTES = 4 * 2**30  # of attention scores that the CPU kernel may hold


class OnnxEngine(PaddedEngine):
    """Runs model.onnx in float32.

    ``provider`` is the execution provider to use; by default CUDA where torch sees a GPU, else CPU. ONNX
    Runtime falls back to CPU without an error when a provider fails to load, so the session is asked what
    it runs on.
    """

    name: ClassVar[str] = "onnx"
    # The CPU kernel holds cells x heads x L x L scores, so a batch is kept small.
    max_tokens: ClassVar[int] = 4096
    max_cells: ClassVar[int] = 256

    def __init__(self, model_dir: str | Path, provider: str | None = None) -> None:
        folder = Path(model_dir)
        provider = provider or (CUDA_PROVIDER if torch.cuda.is_available() else CPU_PROVIDER)
        self._session = open_session(folder / ONNX_FILE, provider)
        metadata = read_metadata(self._session, folder / ONNX_FILE)
        self._heads: int = metadata["architecture"]["encoder_heads"]
        self._on_cpu = provider == CPU_PROVIDER
        vocabulary = Vocabulary.from_file(folder / VOCABULARY_FILE)
        if vocabulary.hash != metadata["info"]["vocabulary_sha256"]:
            raise ServingError(
                f"{folder / VOCABULARY_FILE}: not the genes of {ONNX_FILE}; export the model again."
            )
        super().__init__(
            vocabulary.genes,
            metadata["architecture"]["encoder_width"],
            metadata["info"],
            f"{ONNX_FILE} on ONNX Runtime {onnxruntime.__version__} ({provider})",
        )

    def run(
        self,
        value_BL: npt.NDArray[np.float32],
        position_BL: npt.NDArray[np.int64],
        length_B: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """See PaddedEngine.run."""
        cells, length = value_BL.shape
        if self._on_cpu and 4 * cells * self._heads * length**2 > MAX_SCORE_BYTES:
            raise ServingError(
                f"A cell has {length:,} tokens, and ONNX Runtime's CPU attention would need more than "
                f"{MAX_SCORE_BYTES // 2**30} GiB for it; use --engine torch."
            )
        feeds = {"value": value_BL, "position": position_BL, "length": length_B}
        return self._session.run(["cell_embedding"], feeds)[0]


def open_session(path: Path, provider: str) -> onnxruntime.InferenceSession:
    """A session that runs on ``provider``, or ServingError."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # failures are raised here, not logged
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # ONNX Runtime has no common error class
        raise ServingError(f"{path}: ONNX Runtime cannot open it; export the model again.") from error
    if session.get_providers()[0] != provider:
        raise ServingError(
            f"ONNX Runtime could not load {provider} (it offers {', '.join(session.get_providers())} here); "
            "install its libraries or use another engine."
        )
    return session


def read_metadata(session: onnxruntime.InferenceSession, path: Path) -> dict[str, Any]:
    """What the export wrote into the file: architecture and info."""
    try:
        return json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    except (KeyError, ValueError) as error:
        raise ServingError(
            f"{path}: not made by `cellfoundry model export`; export the model again."
        ) from error
