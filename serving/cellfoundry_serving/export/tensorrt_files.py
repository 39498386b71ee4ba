"""model.plan of a model and what it is bound to, run beside torch where there is a GPU."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from cellfoundry_serving.engines.tensorrt import TensorRTEngine
from cellfoundry_serving.engines.torch import TorchEngine
from cellfoundry_serving.export.check import BARS, Comparison, Progress, check_against, checked_cells
from cellfoundry_serving.export.layout import PLAN_FILE, PLAN_METADATA_FILE
from cellfoundry_serving.export.onnx import metadata, write_cell_graph
from cellfoundry_serving.export.plan_facts import this_machine
from cellfoundry_serving.export.tensorrt import build_plan, default_timing_cache, profiles_for
from cellfoundry_serving.export.tensorrt_api import import_tensorrt


def stage_tensorrt(
    reference: TorchEngine, staging: Path, precision: str, timing_cache: Path | None, progress: Progress
) -> list[Comparison]:
    """Writes plan and metadata to ``staging``; the comparison is empty where no GPU can run it."""
    trt = import_tensorrt()
    machine = this_machine(trt)
    profiles = profiles_for(reference.loaded.config.n_positions)
    graph = staging / "graph.onnx"
    progress("write graphs", 0, 1)
    write_cell_graph(reference.loaded, graph, precision)
    progress("write graphs", 1, 1)
    progress("build plan", 0, 1)
    cache = timing_cache or default_timing_cache(machine.tensorrt, str(machine.gpu))
    plan = build_plan(trt, graph, profiles, cache)
    (staging / PLAN_FILE).write_bytes(plan)
    progress("build plan", 1, 1)
    graph.unlink()
    facts = metadata(reference.loaded, precision) | machine._asdict()
    facts["plan_sha256"] = hashlib.sha256(plan).hexdigest()
    facts["profiles"] = [asdict(profile) for profile in profiles]
    (staging / PLAN_METADATA_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if machine.gpu is None:
        return []
    cells = checked_cells(len(reference.vocab_genes), decoder=False)
    return check_against(reference, TensorRTEngine(staging), BARS[precision], cells, progress)
