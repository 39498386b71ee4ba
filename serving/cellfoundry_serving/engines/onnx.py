"""ONNX Runtime, from a directory made by ``cellfoundry model export --format onnx``."""

from __future__ import annotations

import contextlib
import io
import json
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from cellfoundry_model.config import ModelConfig
from cellfoundry_model.embedder import DECODER_BYTES, Output, decoder_cell_bytes
from cellfoundry_serving.engines.belongs import check_belongs
from cellfoundry_serving.engines.padded import PaddedEngine
from cellfoundry_serving.engines.providers import PROVIDERS, check_provider, default_provider
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.layout import DECODER_FILE, METADATA_KEY, ONNX_FILE

MAX_SCORE_BYTES = 4 * 2**30  # of attention scores that the CPU kernel may hold


class OnnxEngine(PaddedEngine):
    """Runs model.onnx, and decoder.onnx where it was exported.

    ``provider`` is "cpu", "cuda" or "tensorrt"; by default CUDA where torch sees a GPU, else CPU. ONNX
    Runtime falls back to CPU without an error when a provider fails to load, so the session is asked what
    it runs on.
    """

    name: ClassVar[str] = "onnx"
    # The CPU kernel holds cells x heads x L x L scores, so a batch is kept small.
    max_tokens: ClassVar[int] = 4096
    max_cells: ClassVar[int] = 256

    def __init__(self, model_dir: str | Path, provider: str | None = None) -> None:
        check_provider(provider)
        self._folder = Path(model_dir)
        self._provider = provider or default_provider()
        self._session = open_session(self._folder / ONNX_FILE, self._provider)
        facts = read_metadata(self._session, self._folder / ONNX_FILE)
        vocabulary = check_belongs(facts, self._folder, ONNX_FILE)
        config = ModelConfig.from_dict(facts["architecture"])
        self._heads = config.encoder_heads
        self.precision = facts["precision"]
        self.decoder_width = config.decoder_width
        self.has_decoder = (self._folder / DECODER_FILE).is_file()
        self.max_decoder_cells = max(1, DECODER_BYTES // decoder_cell_bytes(config))
        super().__init__(
            vocabulary.genes,
            config.encoder_width,
            facts["info"],
            f"{ONNX_FILE} ({self.precision}) on ONNX Runtime {onnxruntime.__version__} "
            f"({PROVIDERS[self._provider][0]})",
        )

    def run(
        self,
        value_BL: npt.NDArray[np.float32],
        position_BL: npt.NDArray[np.int64],
        length_B: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """See PaddedEngine.run."""
        return self._encode("cell_embedding", value_BL, position_BL, length_B)

    def decode(
        self,
        output: Output,
        value_BL: npt.NDArray[np.float32],
        position_BL: npt.NDArray[np.int64],
        length_B: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """See PaddedEngine.decode."""
        token_BLD = self._encode("token_embedding", value_BL, position_BL, length_B)
        name = "gene_embedding" if output == "gene" else "expression"
        return self._decoder.run([name], {"token_embedding": token_BLD, "position": position_BL})[0]

    def _encode(
        self,
        name: str,
        value_BL: npt.NDArray[np.float32],
        position_BL: npt.NDArray[np.int64],
        length_B: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        cells, length = value_BL.shape
        if self._provider == "cpu" and 4 * cells * self._heads * length**2 > MAX_SCORE_BYTES:
            raise ServingError(
                f"A cell has {length:,} tokens, and ONNX Runtime's CPU attention would need more than "
                f"{MAX_SCORE_BYTES // 2**30} GiB for it; use --engine torch."
            )
        return self._session.run([name], {"value": value_BL, "position": position_BL, "length": length_B})[0]

    @cached_property
    def _decoder(self) -> onnxruntime.InferenceSession:
        """Opened when it is first asked for: most runs want cell embeddings."""
        session = open_session(self._folder / DECODER_FILE, self._provider)
        facts = read_metadata(session, self._folder / DECODER_FILE)
        check_belongs(facts, self._folder, DECODER_FILE)
        return session


def open_session(path: Path, provider: str) -> onnxruntime.InferenceSession:
    """A session that runs on ``provider``, with as many threads as torch uses; else ServingError."""
    wanted = PROVIDERS[provider]
    # Failures are raised here, not logged: the default logger is that of libraries that do not load.
    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its fallback from TensorRT is printed
            session = onnxruntime.InferenceSession(path, options, providers=list(wanted))
    except Exception as error:  # ONNX Runtime has no common error class
        if type(error).__name__ == "NotImplemented":
            raise ServingError(
                f"{path}: {wanted[0]} lacks kernels for its precision; use another provider or precision."
            ) from error
        raise ServingError(f"{path}: ONNX Runtime cannot open it; export the model again.") from error
    if session.get_providers()[0] != wanted[0]:
        raise ServingError(
            f"ONNX Runtime could not load {wanted[0]} (it offers {', '.join(session.get_providers())} here); "
            "install its libraries or use another engine."
        )
    return session


def read_metadata(session: onnxruntime.InferenceSession, path: Path) -> dict[str, Any]:
    """What the export wrote into the file: architecture, info and precision."""
    try:
        facts = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
        return {name: facts[name] for name in ("architecture", "info", "precision")}
    except (KeyError, ValueError) as error:
        raise ServingError(
            f"{path}: not made by this version's `cellfoundry model export`; export the model again."
        ) from error
