"""TensorRT engine from the same graph as the ONNX export, float16 inside, strongly typed.

TensorRT 11 knows strong typing only, and its fused attention needs half precision, so the graph is
float16.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from cellfoundry_serving.errors import ServingError

# (cells, tokens) of the smallest, usual and largest batch the engine accepts.
PROFILE = ((1, 3), (8, 1024), (32, 8192))


def build_plan(trt: ModuleType, onnx_path: Path) -> bytes:
    """Parses ``onnx_path`` and builds a serialised engine for the GPU at hand; ServingError where it cannot.

    TensorRT-RTX also builds on a machine without a GPU.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # the bindings raise TypeError where there is no driver
        raise ServingError(
            "TensorRT finds no NVIDIA GPU; build on the machine that will run the engine."
        ) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise ServingError(f"TensorRT cannot parse the graph: {parser.get_error(0).desc()}.")
    allow_unfused_attention(trt, network)
    config = builder.create_builder_config()
    config.add_optimization_profile(make_profile(builder, network))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ServingError("TensorRT could not build an engine from the graph; its log above says why.")
    return bytes(plan)


def allow_unfused_attention(trt: ModuleType, network: Any) -> None:
    """Lets TensorRT split an attention of a head width that no fused kernel takes, instead of giving up."""
    boundary = getattr(
        trt.LayerType, "ATTENTION_INPUT", None
    )  # releases before 10.14 have no attention layer
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == boundary:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings' way to downcast
            layer.attention.decomposable = True


def make_profile(builder: Any, network: Any) -> Any:
    """One optimisation profile over cells and tokens; ``length`` has the first axis only."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        profile.set_shape(tensor.name, *(shape[: len(tensor.shape)] for shape in PROFILE))
    return profile
