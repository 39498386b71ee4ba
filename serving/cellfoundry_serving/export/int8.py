"""int8 by static quantisation: the encoder's linear maps, with weights per output channel.

Activations of a map get one scale for the whole tensor, from the range that real cells show, as unsigned bytes;
weights get one for each output channel, signed. That is the pair that the processor's byte products (VNNI) take.
Everything else stays float32. A map whose input has outliers, so that one scale would round most of its numbers away,
stays float32 too: its expected rounding noise is known from the same cells.

The graph is in QDQ form (QuantizeLinear, DequantizeLinear around each product), which engines fuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

# Rounding noise against the signal, of a map's input, above which it stays in float32: the first limit, and others to
# try where the whole misses its bar. Inputs behind a LayerNorm are at about 0.012, behind a ReLU at 0.009, attention's
# results at 0.007, so the first keeps those with outliers only, the last every map.
NOISE_LIMITS = (0.03, 0.02, 0.015, 0.012, 0.01, 0.0)

# Bytes span this much more than calibration saw: what lies outside is cut off, which costs more than coarser steps. It
# was chosen on 24 cells of each of seven data sets at T = 4, with a small trained model calibrated on one of them: the
# smallest cosine was 0.9993 with it, 0.9991 with none and with 1.3.
MARGIN = 1.15


@dataclass
class ActivationRange:
    """What calibration saw of one tensor.

    Attributes:
        low: smallest number, 0 at most.
        high: largest number, 0 at least.
        square_sum: sum of squares.
        count: numbers seen.
    """

    low: float = 0.0
    high: float = 0.0
    square_sum: float = 0.0
    count: int = 0

    def see(self, values: npt.NDArray[np.float32]) -> None:
        """Takes in a cell's values."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.square_sum += float(np.dot(values.ravel(), values.ravel()))
        self.count += values.size

    @property
    def scale(self) -> np.float32:
        """Step of the bytes that span the range and its margin."""
        return np.float32(MARGIN * max(self.high - self.low, 1e-12) / 255)

    @property
    def zero_point(self) -> np.uint8:
        """The byte that stands for 0."""
        return np.uint8(np.clip(round(-MARGIN * self.low / self.scale), 0, 255))

    @property
    def noise(self) -> float:
        """Standard deviation of the rounding (uniform, so step / sqrt 12) over the root mean square."""
        return float(self.scale) / 12**0.5 / max((self.square_sum / max(self.count, 1)) ** 0.5, 1e-12)


Inputs = Mapping[str, npt.NDArray[np.generic]]


def calibrate(source: Path, calibration: Iterable[Inputs]) -> dict[str, ActivationRange]:
    """Ranges of the inputs of the float32 graph's maps, over the inputs of ``calibration``, each one cell."""
    model = onnx.load(source)
    names = sorted({node.input[0] for node in encoder_maps(model.graph)})
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    ranges = {name: ActivationRange() for name in names}
    for inputs in calibration:
        for name, values in zip(names, session.run(names, inputs), strict=True):
            ranges[name].see(values)
    return ranges


def write_int8(
    source: Path, target: Path, ranges: Mapping[str, ActivationRange], max_noise: float
) -> tuple[int, int]:
    """Quantises the float32 graph ``source`` into ``target``, but for maps whose input's noise is above ``max_noise``.

    Returns how many maps stay in float32, and how many there are.
    """
    model = onnx.load(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    maps = encoder_maps(graph)
    quantised = {node.name for node in maps if ranges[node.input[0]].noise <= max_noise}
    nodes: list[onnx.NodeProto] = []
    tensors: dict[str, onnx.TensorProto] = {}
    for node in graph.node:
        if node.name in quantised:
            activation, weight = node.input
            nodes += byte_activation(activation, node.name, ranges[activation], tensors)
            nodes.append(byte_weight(weights[weight], node.name, tensors))
            node.input[:] = [f"{node.name}/activation", f"{node.name}/weight"]
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    floats = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*floats, *tensors.values()])
    onnx.save(model, target)
    return len(maps) - len(quantised), len(maps)


def encoder_maps(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Products of the encoder layers' linear maps; the value embedding's small ones take no time."""
    weights = {tensor.name for tensor in graph.initializer}
    return [
        node
        for node in graph.node
        if node.op_type == "MatMul"
        and node.input[1] in weights
        and not node.input[1].startswith("value_embedding.")
    ]


def byte_activation(
    tensor: str, node: str, seen: ActivationRange, tensors: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """Nodes that round ``tensor`` to bytes and back, as ``NODE/activation``; their constants join ``tensors``."""
    scale, zero, byte = f"{node}/activation_scale", f"{node}/activation_zero", f"{node}/activation_byte"
    for name, number in ((scale, seen.scale), (zero, seen.zero_point)):
        tensors[name] = numpy_helper.from_array(np.asarray(number), name)
    return [
        helper.make_node("QuantizeLinear", [tensor, scale, zero], [byte], f"{node}/quantize"),
        helper.make_node(
            "DequantizeLinear", [byte, scale, zero], [f"{node}/activation"], f"{node}/dequantize"
        ),
    ]


def byte_weight(weight: onnx.TensorProto, node: str, tensors: dict[str, onnx.TensorProto]) -> onnx.NodeProto:
    """Node that gives ``NODE/weight``, (inputs, outputs), from signed bytes with a scale an output."""
    weight_KM = numpy_helper.to_array(weight)
    scale_M = np.maximum(abs(weight_KM).max(axis=0), 1e-12).astype(np.float32) / np.float32(127)
    byte_KM = np.clip(np.rint(weight_KM / scale_M), -127, 127).astype(np.int8)
    parts = {
        f"{node}/weight_byte": byte_KM,
        f"{node}/weight_scale": scale_M,
        f"{node}/weight_zero": np.zeros(len(scale_M), np.int8),
    }
    tensors |= {name: numpy_helper.from_array(part, name) for name, part in parts.items()}
    return helper.make_node(
        "DequantizeLinear", list(parts), [f"{node}/weight"], f"{node}/dequantize_weight", axis=1
    )
