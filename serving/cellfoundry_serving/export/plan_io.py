"""Inputs and output of a TensorRT network or engine, and whether they are what the engines of this package feed.

A network is inspected before each build, an engine when it is opened, which takes a GPU: TensorRT's runtime reads no
plan without one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.tensorrt_profiles import Profile, Shape

OUTPUT = "cell_embedding"
DTYPES = {"value": "FLOAT", "position": "INT64", "length": "INT64", "cu_seqlens": "INT32", OUTPUT: "FLOAT"}


class PlanTensor(NamedTuple):
    """An input or the output.

    Attributes:
        dtype: TensorRT's name of it.
        shape: -1 stands for what a batch decides.
        profiles: smallest, usual and largest shape of each optimisation profile; nothing for the output.
    """

    dtype: str
    shape: Shape
    profiles: tuple[tuple[Shape, ...], ...]


def network_tensors(network: Any, profiles: list[Any]) -> dict[str, PlanTensor]:
    """By name, of a network and TensorRT's optimisation profiles for it."""
    found = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        ranges = tuple(as_shapes(profile.get_shape(tensor.name)) for profile in profiles)
        found[tensor.name] = PlanTensor(tensor.dtype.name, tuple(tensor.shape), ranges)
    for index in range(network.num_outputs):
        tensor = network.get_output(index)
        found[tensor.name] = PlanTensor(tensor.dtype.name, tuple(tensor.shape), ())
    return found


def engine_tensors(engine: Any) -> dict[str, PlanTensor]:
    """By name, of a deserialised engine."""
    found = {}
    for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
        indices = (
            range(engine.num_optimization_profiles) if engine.get_tensor_mode(name).name == "INPUT" else ()
        )
        ranges = tuple(as_shapes(engine.get_tensor_profile_shape(name, index)) for index in indices)
        found[name] = PlanTensor(
            engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name)), ranges
        )
    return found


def as_shapes(shapes: Any) -> tuple[Shape, ...]:
    """TensorRT's shapes as tuples."""
    return tuple(tuple(shape) for shape in shapes)


def expected_tensors(profiles: list[Profile], encoder_width: int) -> dict[str, PlanTensor]:
    """By name, what a plan with these profiles must have."""
    shapes = [profile.shapes() for profile in profiles]
    expected = {
        name: PlanTensor(DTYPES[name], (-1,) * len(smallest), tuple(each[name] for each in shapes))
        for name, (smallest, *_) in shapes[0].items()
    }
    return expected | {OUTPUT: PlanTensor(DTYPES[OUTPUT], (-1, 4 * encoder_width), ())}


def check_tensors(
    found: dict[str, PlanTensor], profiles: list[Profile], encoder_width: int, what: str
) -> None:
    """Raises ServingError where ``found``, of ``what``, is not what the engine feeds and reads."""
    expected = expected_tensors(profiles, encoder_width)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ServingError(
                f"{what}: tensor {name} is {found.get(name, 'missing')}, but batches have "
                f"{expected.get(name, 'no such tensor')}; export the model again with this version of cellfoundry."
            )
