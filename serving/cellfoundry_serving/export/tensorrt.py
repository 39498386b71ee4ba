"""TensorRT plan from a graph of the ONNX export, in half precision, strongly typed.

TensorRT 11 knows strong typing only, and its fused attention needs half precision; both are fine with 10.x.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.packed_attention import attentions, pack_attention
from cellfoundry_serving.export.plan_io import check_tensors, network_tensors
from cellfoundry_serving.export.tensorrt_profiles import Layout, Profile
from cellfoundry_serving.export.timing_cache import keeps_times, load_timing_cache, save_timing_cache

LONGEST_COMPLAINT = 300  # characters of TensorRT's own words in an error


class PlanBuilder:
    """TensorRT's builder for the GPU at hand; ServingError where there is none.

    TensorRT-RTX also builds on a machine without a GPU.
    """

    def __init__(self, trt: ModuleType) -> None:
        self._trt = trt
        self._complaints: list[str] = []
        self._logger = recorder(trt, self._complaints)
        try:
            self._builder = trt.Builder(self._logger)
        except (TypeError, RuntimeError) as error:  # the bindings raise TypeError where there is no driver
            raise ServingError(
                "TensorRT finds no NVIDIA GPU; build on the machine that will run the engine."
            ) from error

    def network(self, onnx_path: Path, layout: Layout) -> Any:
        """The network of the cell graph of this layout; ServingError with the parser's first complaint."""
        network = self._builder.create_network(
            1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        )
        parser = self._trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(onnx_path)):
            raise ServingError(f"TensorRT cannot parse the graph: {one_line(parser.get_error(0).desc())}.")
        if layout == "packed":
            pack_attention(self._trt, network)
        else:
            # TensorRT may split an attention of a head width that no fused kernel takes, instead of giving up.
            for attention in attentions(self._trt, network):
                attention.decomposable = True
        return network

    def plan(self, network: Any, profiles: list[Profile], encoder_width: int, timing_cache: Path) -> bytes:
        """A serialised engine; ServingError with TensorRT's first complaint where it builds none.

        The network's inputs, output and profiles are inspected first: they must be what the engine will feed and read.
        ``timing_cache`` keeps what TensorRT measured of its kernels, so that the next build is faster (TensorRT-RTX
        measures nothing).
        """
        ranges = [self.optimization_profile(profile) for profile in profiles]
        check_tensors(network_tensors(network, ranges), profiles, encoder_width, "The parsed graph")
        config = self._builder.create_builder_config()
        for each in ranges:
            config.add_optimization_profile(each)
        if keeps_times(self._trt):
            load_timing_cache(config, timing_cache)
        self._complaints.clear()
        plan = self._builder.build_serialized_network(network, config)
        if plan is None:
            raise ServingError(
                f"TensorRT cannot build an engine from the graph: {one_line(*self._complaints)}."
            )
        if keeps_times(self._trt):
            save_timing_cache(config, timing_cache)
        return bytes(plan)

    def optimization_profile(self, bucket: Profile) -> Any:
        """TensorRT's form of a bucket."""
        profile = self._builder.create_optimization_profile()
        for name, shapes in bucket.shapes().items():
            profile.set_shape(name, *shapes)
        return profile


def recorder(trt: ModuleType, complaints: list[str]) -> Any:
    """A logger that appends errors to ``complaints`` and drops the rest."""

    logger: Any = trt.ILogger

    class Recorder(logger):
        def __init__(self) -> None:
            logger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (logger.INTERNAL_ERROR, logger.ERROR):
                complaints.append(message)

    return Recorder()


def one_line(complaint: str = "it does not say why", *_: str) -> str:
    """The first sentence of the first complaint, on one line, cut where it is long, without its full stop."""
    return " ".join(complaint.split()).partition(". ")[0][:LONGEST_COMPLAINT].rstrip(".")
