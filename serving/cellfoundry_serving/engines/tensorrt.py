"""TensorRT, from a directory made by ``cellfoundry model export --format tensorrt`` for this GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from cellfoundry_serving.engines.belongs import check_belongs
from cellfoundry_serving.engines.padded import PaddedEngine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.layout import PLAN_FILE
from cellfoundry_serving.export.plan_facts import check_machine, check_plan, read_plan_facts, this_machine
from cellfoundry_serving.export.tensorrt import BUCKETS, Profile, pick_profile
from cellfoundry_serving.export.tensorrt_api import import_tensorrt


class TensorRTEngine(PaddedEngine):
    """Runs model.plan on the current CUDA device; torch owns the memory and the stream."""

    name: ClassVar[str] = "tensorrt"
    max_tokens: ClassVar[int] = 32_768
    max_cells: ClassVar[int] = BUCKETS[0][1]

    def __init__(self, model_dir: str | Path) -> None:
        folder = Path(model_dir)
        trt = import_tensorrt()
        facts, machine = read_plan_facts(folder), this_machine(trt)
        check_machine(facts, machine, folder / PLAN_FILE)
        vocabulary = check_belongs(facts, folder, PLAN_FILE)
        plan = (folder / PLAN_FILE).read_bytes()
        check_plan(facts, plan, folder / PLAN_FILE)
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ServingError(
                f"{folder / PLAN_FILE} does not run on this GPU; export the model again on it."
            )
        self._profiles = [Profile(**profile) for profile in facts["profiles"]]
        # A context keeps the profile it was given last, and another one costs a wait: so one for each.
        self._contexts = [self._engine.create_execution_context() for _ in self._profiles]
        for index, context in enumerate(self._contexts):
            context.set_optimization_profile_async(index, torch.cuda.current_stream().cuda_stream)
        self.precision = facts["precision"]
        why = f"{PLAN_FILE} on {machine.tensorrt} ({machine.gpu}, {self.precision})"
        super().__init__(vocabulary.genes, facts["architecture"]["encoder_width"], facts["info"], why)

    def run(
        self,
        value_BL: npt.NDArray[np.float32],
        position_BL: npt.NDArray[np.int64],
        length_B: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """See PaddedEngine.run; cells of a batch that is too large for its length go through in turns."""
        index = pick_profile(self._profiles, value_BL.shape[1])
        cells = self._profiles[index].max_cells
        inputs: dict[str, npt.NDArray[Any]] = {"value": value_BL, "position": position_BL, "length": length_B}
        parts = [
            self._run(index, {name: array[first : first + cells] for name, array in inputs.items()})
            for first in range(0, len(length_B), cells)
        ]
        return np.concatenate(parts)

    def _run(self, index: int, inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        context, stream = self._contexts[index], torch.cuda.current_stream()
        tensors = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
        embedding = torch.empty(len(inputs["length"]), 4 * self.encoder_width, device="cuda")
        for name, tensor in tensors.items():
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        context.set_tensor_address("cell_embedding", embedding.data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise ServingError("TensorRT could not run the batch; its log above says why.")
        stream.synchronize()
        return embedding.cpu().numpy()


def why_not_here(folder: Path) -> str:
    """Why the plan in ``folder`` cannot run on this machine, or nothing; cheap, without loading it."""
    try:
        facts = read_plan_facts(folder)
        check_machine(facts, this_machine(import_tensorrt()), folder / PLAN_FILE)
        check_belongs(facts, folder, PLAN_FILE)
    except ServingError as error:
        return str(error)
    return ""
