"""TensorRT, from a directory made by ``cellfoundry model export --format tensorrt`` for this GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.engines.belongs import check_belongs
from cellfoundry_serving.engines.packed import PackedEngine
from cellfoundry_serving.engines.padded import PaddedEngine
from cellfoundry_serving.engines.plan import Plan
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.layout import PLAN_FILE
from cellfoundry_serving.export.plan_facts import check_machine, read_plan_facts, this_machine
from cellfoundry_serving.export.tensorrt_api import import_tensorrt
from cellfoundry_serving.export.tensorrt_profiles import PADDED_BUCKETS


def open_plan(folder: Path) -> Engine:
    """The engine for the plan in ``folder``, which says whether its batches are packed; ServingError as of ``Plan``."""
    plan = Plan(folder)
    packed = plan.profiles[0].layout == "packed"
    return PackedTensorRTEngine(plan) if packed else PaddedTensorRTEngine(plan)


class PaddedTensorRTEngine(PaddedEngine):
    """Runs a plan over padded batches."""

    name: ClassVar[str] = "tensorrt"
    max_tokens: ClassVar[int] = 32_768
    max_cells: ClassVar[int] = PADDED_BUCKETS[0][1]

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.precision = plan.facts["precision"]
        super().__init__(*engine_facts(plan))

    def run(
        self,
        value_BL: npt.NDArray[np.float32],
        position_BL: npt.NDArray[np.int64],
        length_B: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """See PaddedEngine.run; cells of a batch that is too large for its length go through in turns."""
        tokens = value_BL.shape[1]
        cells = self._plan.profile(tokens).max_cells
        inputs: dict[str, npt.NDArray[Any]] = {"value": value_BL, "position": position_BL, "length": length_B}
        parts = []
        for first in range(0, len(length_B), cells):
            part = {name: array[first : first + cells] for name, array in inputs.items()}
            parts.append(self._plan.run(tokens, len(part["length"]), part))
        return np.concatenate(parts)


class PackedTensorRTEngine(PackedEngine):
    """Runs a plan over packed batches."""

    name: ClassVar[str] = "tensorrt"

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.max_tokens, self.max_cells = plan.profiles[-1].max_tokens, plan.profiles[-1].max_cells
        self.precision = plan.facts["precision"]
        super().__init__(*engine_facts(plan))

    def run(
        self,
        value_N: npt.NDArray[np.float32],
        position_N: npt.NDArray[np.int64],
        cu_seqlens: npt.NDArray[np.int32],
    ) -> npt.NDArray[np.float32]:
        """See PackedEngine.run."""
        inputs: dict[str, npt.NDArray[Any]] = {
            "value": value_N,
            "position": position_N,
            "cu_seqlens": cu_seqlens,
        }
        return self._plan.run(len(value_N), len(cu_seqlens) - 1, inputs)


def engine_facts(plan: Plan) -> tuple[tuple[str, ...], int, dict[str, Any], str]:
    """Genes, encoder width, info and why: what every engine is told (see ``Engine``)."""
    why = f"{PLAN_FILE} on {plan.where}, {plan.facts['precision']}, {plan.profiles[0].layout} tokens"
    return plan.genes, plan.facts["architecture"]["encoder_width"], plan.facts["info"], why


def why_not_here(folder: Path) -> str:
    """Why the plan in ``folder`` cannot run on this machine, or nothing; cheap, without loading it."""
    try:
        facts = read_plan_facts(folder)
        check_machine(facts, this_machine(import_tensorrt()), folder / PLAN_FILE)
        check_belongs(facts, folder, PLAN_FILE)
    except ServingError as error:
        return str(error)
    return ""
