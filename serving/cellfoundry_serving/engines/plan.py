"""A TensorRT plan, opened on the current CUDA device; torch owns the memory and the stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cellfoundry_serving.engines.belongs import check_belongs
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.layout import PLAN_FILE
from cellfoundry_serving.export.plan_facts import check_machine, check_plan, read_plan_facts, this_machine
from cellfoundry_serving.export.plan_io import OUTPUT, check_tensors, engine_tensors
from cellfoundry_serving.export.tensorrt_api import import_tensorrt
from cellfoundry_serving.export.tensorrt_profiles import Profile, pick_profile


class Plan:
    """model.plan of ``folder``; ServingError where it cannot run here, or is not of the folder's model.

    Attributes:
        facts: what stands beside it (see ``plan_facts.FACTS``).
        genes: the folder's vocabulary.
        profiles: the batches it takes.
        where: TensorRT and GPU, for people.
    """

    def __init__(self, folder: Path) -> None:
        path, trt = folder / PLAN_FILE, import_tensorrt()
        self.facts, machine = read_plan_facts(folder), this_machine(trt)
        check_machine(self.facts, machine, path)
        self.genes = check_belongs(self.facts, folder, PLAN_FILE).genes
        plan = path.read_bytes()
        check_plan(self.facts, plan, path)
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ServingError(f"{path} does not run on this GPU; export the model again on it.")
        self.profiles = [Profile(**profile) for profile in self.facts["profiles"]]
        self._width = self.facts["architecture"]["encoder_width"]
        check_tensors(engine_tensors(self._engine), self.profiles, self._width, str(path))
        self.where = f"{machine.tensorrt} ({machine.gpu})"
        # A context keeps the profile it was given last, and another one costs a wait: so one for each.
        self._contexts = [self._engine.create_execution_context() for _ in self.profiles]
        for index, context in enumerate(self._contexts):
            context.set_optimization_profile_async(index, torch.cuda.current_stream().cuda_stream)

    def profile(self, tokens: int) -> Profile:
        """The profile that takes a batch of ``tokens`` tokens (see ``Profile.max_tokens``)."""
        return self.profiles[pick_profile(self.profiles, tokens)]

    def run(self, tokens: int, cells: int, inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Pool "all" (cells, 4 D), float32, of a batch that the profile of ``tokens`` tokens takes."""
        context = self._contexts[pick_profile(self.profiles, tokens)]
        stream = torch.cuda.current_stream()
        tensors = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
        embedding = torch.empty(cells, 4 * self._width, device="cuda")
        for name, tensor in tensors.items():
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        context.set_tensor_address(OUTPUT, embedding.data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise ServingError("TensorRT could not run the batch; its log above says why.")
        stream.synchronize()
        return embedding.cpu().numpy()
