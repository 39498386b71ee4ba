"""What a plan takes and gives, inspected: the network before a build, the engine where there is a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cellfoundry_serving.engines.torch import TorchEngine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.onnx import write_cell_graph
from cellfoundry_serving.export.plan_io import (
    PlanTensor,
    check_tensors,
    engine_tensors,
    expected_tensors,
    network_tensors,
)
from cellfoundry_serving.export.tensorrt import PlanBuilder
from cellfoundry_serving.export.tensorrt_api import import_tensorrt
from cellfoundry_serving.export.tensorrt_profiles import LAYOUTS, Layout, Profile, profiles_for

from .conftest import CONFIG, tensorrt_is_installed

WIDTH = CONFIG.encoder_width
needs_tensorrt = pytest.mark.skipif(not tensorrt_is_installed(), reason="no TensorRT is installed")


class EngineOfNetwork:
    """Answers as the engine of a network and its profiles would: TensorRT gives one only where there is a GPU."""

    def __init__(self, network: Any, ranges: list[Any]) -> None:
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        self.tensors = {tensor.name: tensor for tensor in [*outputs, *inputs]}
        self.ranges = ranges
        self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), len(ranges)

    def get_tensor_name(self, index: int) -> str:
        return [*self.tensors][index]

    def get_tensor_mode(self, name: str) -> Any:
        mode = import_tensorrt().TensorIOMode
        return mode.INPUT if self.tensors[name].is_network_input else mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.tensors[name].dtype

    def get_tensor_shape(self, name: str) -> Any:
        return self.tensors[name].shape

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self.ranges[index].get_shape(name)


@needs_tensorrt
def test_a_padded_plan_takes_what_the_engine_feeds(model_dir: Path, tmp_path: Path) -> None:
    trt = import_tensorrt()
    write_cell_graph(TorchEngine(model_dir, device="cpu").loaded, tmp_path / "graph.onnx", "fp16")
    builder = PlanBuilder(trt)
    network = builder.network(tmp_path / "graph.onnx", "padded")
    profiles = profiles_for("padded", CONFIG.n_positions)
    ranges = [builder.optimization_profile(profile) for profile in profiles]
    found = network_tensors(network, ranges)
    assert found == {
        "value": PlanTensor("FLOAT", (-1, -1), (((1, 3), (32, 301), (64, 402)),)),
        "position": PlanTensor("INT64", (-1, -1), (((1, 3), (32, 301), (64, 402)),)),
        "length": PlanTensor("INT64", (-1,), (((1,), (32,), (64,)),)),
        "cell_embedding": PlanTensor("FLOAT", (-1, 4 * WIDTH), ()),
    }
    check_tensors(found, profiles, WIDTH, "network")
    engine = EngineOfNetwork(network, ranges)
    assert engine_tensors(engine) == found
    assert all(hasattr(trt.ICudaEngine, name) for name in dir(EngineOfNetwork) if name.startswith("get_"))
    plan = builder.plan(network, profiles, WIDTH, tmp_path / "times")
    engine = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR)).deserialize_cuda_engine(plan)
    if torch.cuda.is_available():
        assert engine_tensors(engine) == found
    else:
        assert engine is None  # TensorRT's runtime wants a driver even to read a plan
    with pytest.raises(ServingError, match=r"The parsed graph: tensor cu_seqlens is missing"):
        builder.plan(network, profiles_for("packed", CONFIG.n_positions), WIDTH, tmp_path / "times")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_plan_is_refused_in_one_sentence(layout: Layout) -> None:
    profiles = profiles_for(layout, 5000)
    good = expected_tensors(profiles, WIDTH)
    check_tensors(good, profiles, WIDTH, "model.plan")
    [bounds] = good.keys() - {"value", "position", "cell_embedding"}
    wrong = {
        "cell_embedding": good | {"cell_embedding": PlanTensor("FLOAT", (-1, WIDTH), ())},
        "position": good | {"position": good["position"]._replace(dtype="INT32")},
        "mask": good | {"mask": good[bounds]},
        bounds: {name: tensor for name, tensor in good.items() if name != bounds},
        "value": good | {"value": good["value"]._replace(profiles=good["value"].profiles[:1])},
    }
    for name, tensors in wrong.items():
        with pytest.raises(
            ServingError, match=rf"model\.plan: tensor {name} is .*; export the model"
        ) as caught:
            check_tensors(tensors, profiles, WIDTH, "model.plan")
        assert str(caught.value).count(". ") == 0
    with pytest.raises(ServingError, match="tensor "):
        check_tensors(good, [Profile(layout, 100, 1), *profiles], WIDTH, "model.plan")
