"""A bfloat16 graph in a form that runs on any CPU, to compare it with torch.

ONNX Runtime's CPU has no bfloat16 matrix products. So each operation computes in float32 and its result is rounded to
bfloat16, which is what a GPU does with its float32 sums; only inside one operation (attention) a GPU may round more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BF16, FP32 = TensorProto.BFLOAT16, TensorProto.FLOAT


def write_emulated(source: Path, target: Path) -> None:
    """Writes the graph of ``source`` to ``target`` with float32 in place of bfloat16, rounded after each operation."""
    model = onnx.load(source)
    graph = model.graph
    rounded = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == BF16}
    for tensor in graph.initializer:
        if tensor.data_type == BF16:
            tensor.CopyFrom(as_float32(tensor))
    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.t.data_type == BF16:
                attribute.t.CopyFrom(as_float32(attribute.t))
        if node.op_type == "Cast" and helper.get_node_attr_value(node, "to") == BF16:
            rounded.add(node.output[0])
            node.CopyFrom(helper.make_node("Identity", node.input, node.output, node.name))
        roundings = []
        for position, name in enumerate(node.output):
            if name in rounded:
                node.output[position] = f"{name}/exact"
                roundings += rounding(name)
        nodes += [node, *roundings]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    onnx.save(model, target)


def rounding(name: str) -> list[onnx.NodeProto]:
    """Nodes that make ``name`` of ``name/exact``, rounded to bfloat16."""
    return [
        helper.make_node("Cast", [f"{name}/exact"], [f"{name}/bf16"], f"{name}/round", to=BF16),
        helper.make_node("Cast", [f"{name}/bf16"], [name], f"{name}/back", to=FP32),
    ]


def as_float32(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The same numbers as float32; every bfloat16 number is one."""
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
