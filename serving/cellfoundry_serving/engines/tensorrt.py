"""TensorRT, from a directory made by ``cellfoundry model export --format tensorrt`` for this GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.engines.padded import PaddedEngine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.layout import PLAN_FILE, PLAN_METADATA_FILE, VOCABULARY_FILE
from cellfoundry_serving.export.tensorrt import PROFILE
from cellfoundry_serving.export.tensorrt_api import flavour, import_tensorrt

MAX_LENGTH = PROFILE[-1][1]


class TensorRTEngine(PaddedEngine):
    """Runs model.plan on the current CUDA device; torch owns the memory and the stream."""

    name: ClassVar[str] = "tensorrt"
    max_tokens: ClassVar[int] = 16_384
    max_cells: ClassVar[int] = PROFILE[-1][0]

    def __init__(self, model_dir: str | Path) -> None:
        folder = Path(model_dir)
        trt = import_tensorrt()
        if not torch.cuda.is_available():
            raise ServingError(
                "The tensorrt engine needs an NVIDIA GPU, and torch finds none; use another engine."
            )
        facts = json.loads((folder / PLAN_METADATA_FILE).read_text(encoding="utf-8"))
        if facts["built_with"] != flavour(trt):
            raise ServingError(
                f"{folder / PLAN_FILE} was built with {facts['built_with']}, installed is {flavour(trt)}; "
                "export the model again."
            )
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = runtime.deserialize_cuda_engine((folder / PLAN_FILE).read_bytes())
        if self._engine is None:
            raise ServingError(
                f"{folder / PLAN_FILE} does not run on this GPU; export the model again on it."
            )
        self._context = self._engine.create_execution_context()
        vocabulary = Vocabulary.from_file(folder / VOCABULARY_FILE)
        why = f"{PLAN_FILE} on {flavour(trt)} ({torch.cuda.get_device_name()}, fp16)"
        super().__init__(vocabulary.genes, facts["architecture"]["encoder_width"], facts["info"], why)

    def run(
        self,
        value_BL: npt.NDArray[np.float32],
        position_BL: npt.NDArray[np.int64],
        length_B: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """See PaddedEngine.run; ServingError for a cell longer than the engine was built for."""
        cells, length = value_BL.shape
        if length > MAX_LENGTH:
            raise ServingError(
                f"A cell has {length:,} tokens, TensorRT takes {MAX_LENGTH:,}; use --engine torch."
            )
        tensors = {
            "value": torch.from_numpy(value_BL).cuda(),
            "position": torch.from_numpy(position_BL).cuda(),
            "length": torch.from_numpy(length_B).cuda(),
            "cell_embedding": torch.empty(cells, 4 * self.encoder_width, device="cuda"),
        }
        for name, tensor in tensors.items():
            if name != "cell_embedding":
                self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise ServingError("TensorRT could not run the batch; its log above says why.")
        stream.synchronize()
        return tensors["cell_embedding"].cpu().numpy()
