"""model.plan of a model and what it is bound to, run beside torch where there is a GPU.

A packed plan, without padding, is tried first; a padded one is made where TensorRT has no packed attention, refuses
to build it, or computes something else than torch with it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from cellfoundry_serving.engines.tensorrt import open_plan
from cellfoundry_serving.engines.torch import TorchEngine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.check import BARS, Comparison, Progress, check_against, checked_cells
from cellfoundry_serving.export.layout import PLAN_FILE, PLAN_METADATA_FILE
from cellfoundry_serving.export.onnx import metadata, write_cell_graph, write_packed_cell_graph
from cellfoundry_serving.export.packed_attention import has_packed_attention
from cellfoundry_serving.export.plan_facts import Machine, this_machine
from cellfoundry_serving.export.tensorrt import PlanBuilder
from cellfoundry_serving.export.tensorrt_api import import_tensorrt
from cellfoundry_serving.export.tensorrt_profiles import Layout, profiles_for
from cellfoundry_serving.export.timing_cache import default_timing_cache


@dataclass(frozen=True)
class StagedPlan:
    """A plan in the temporary folder.

    Attributes:
        layout: of its batches.
        built: one sentence for people: which layout, and why.
        comparisons: with torch; none where no GPU can run it.
    """

    layout: Layout
    built: str
    comparisons: list[Comparison]


def stage_tensorrt(
    reference: TorchEngine, staging: Path, precision: str, timing_cache: Path | None, progress: Progress
) -> StagedPlan:
    """Writes plan and metadata to ``staging``; ServingError where no layout can be built, or differs from torch."""
    trt = import_tensorrt()
    machine = this_machine(trt)
    builder = PlanBuilder(trt)
    cache = timing_cache or default_timing_cache(machine.tensorrt, str(machine.gpu))
    stage = partial(stage_layout, builder, machine, reference, staging, precision, cache, progress)
    if not has_packed_attention(trt):
        return stage("padded", f"The plan takes padded batches: {machine.tensorrt} has no packed attention.")
    try:
        return stage("packed", "The plan takes packed batches, without padding.")
    except ServingError as error:
        obstacle = str(error).rstrip(".")
    return stage("padded", f"The plan takes padded batches: a packed one was tried first ({obstacle}).")


def stage_layout(
    builder: PlanBuilder,
    machine: Machine,
    reference: TorchEngine,
    staging: Path,
    precision: str,
    timing_cache: Path,
    progress: Progress,
    layout: Layout,
    built: str,
) -> StagedPlan:
    """Writes and compares the plan of one layout; ServingError as of ``stage_tensorrt``."""
    graph = staging / "graph.onnx"
    write = write_packed_cell_graph if layout == "packed" else write_cell_graph
    config = reference.loaded.config
    profiles = profiles_for(layout, config.n_positions)
    progress(f"write {layout} graph", 0, 1)
    write(reference.loaded, graph, precision)
    progress(f"write {layout} graph", 1, 1)
    progress(f"build {layout} plan", 0, 1)
    try:
        plan = builder.plan(builder.network(graph, layout), profiles, config.encoder_width, timing_cache)
    finally:
        graph.unlink()
        progress(f"build {layout} plan", 1, 1)
    (staging / PLAN_FILE).write_bytes(plan)
    facts = metadata(reference.loaded, precision) | machine._asdict()
    facts["plan_sha256"] = hashlib.sha256(plan).hexdigest()
    facts["profiles"] = [asdict(profile) for profile in profiles]
    facts["built"] = built
    (staging / PLAN_METADATA_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if machine.gpu is None:
        return StagedPlan(layout, built, [])
    cells = checked_cells(len(reference.vocab_genes), decoder=False)
    return StagedPlan(
        layout, built, check_against(reference, open_plan(staging), BARS[precision], cells, progress)
    )
