"""The cell graph with packed inputs: what Triton's ragged batching hands to a model.

Triton joins the requests of a batch one after another, and counts each one's elements. The added nodes spread these
over padded lines, which the cell graph takes; its layers are unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_ragged(source: Path, target: Path, pad_position: int) -> None:
    """Writes the cell graph ``source`` with inputs value (N,) float32, position (N,) int64, length (B,) int32.

    N counts the tokens of all cells, each T, S, then its genes. The output is the cell embedding alone.
    """
    model = onnx.load(source)
    graph = model.graph
    constants = {
        "ragged/zero": np.int64(0),
        "ragged/one": np.int64(1),
        "ragged/axis": np.array([1], np.int64),
        "ragged/no_value": np.float32(0),
        "ragged/pad_position": np.int64(pad_position),
    }

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(operator, inputs, [output], f"node/{output}", **attributes)

    front = [
        node("Cast", ["length"], "ragged/length", to=TensorProto.INT64),
        node("CumSum", ["ragged/length", "ragged/zero"], "ragged/first", exclusive=1),
        node("ReduceMax", ["ragged/length"], "ragged/longest", keepdims=0),
        node("Range", ["ragged/zero", "ragged/longest", "ragged/one"], "ragged/place"),
        node("Unsqueeze", ["ragged/length", "ragged/axis"], "ragged/length_column"),
        node("Less", ["ragged/place", "ragged/length_column"], "ragged/is_token"),
        node("Unsqueeze", ["ragged/first", "ragged/axis"], "ragged/first_column"),
        node("Add", ["ragged/first_column", "ragged/place"], "ragged/row"),
        # Padding reads the first token, which the next nodes replace.
        node("Where", ["ragged/is_token", "ragged/row", "ragged/zero"], "ragged/token"),
    ]
    for name, filler in (("value", "ragged/no_value"), ("position", "ragged/pad_position")):
        front.append(node("Gather", [name, "ragged/token"], f"ragged/any_{name}"))
        front.append(node("Where", ["ragged/is_token", f"ragged/any_{name}", filler], f"ragged/{name}"))
    for existing in graph.node:
        existing.input[:] = [
            f"ragged/{name}" if name in ("value", "position", "length") else name for name in existing.input
        ]
    nodes = [*front, *graph.node]
    del graph.output[1:]  # token embeddings, where there is a decoder to take them
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.extend(
        [
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ["all_tokens"]),
            helper.make_tensor_value_info("position", TensorProto.INT64, ["all_tokens"]),
            helper.make_tensor_value_info("length", TensorProto.INT32, ["cells"]),
        ]
    )
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    )
    onnx.save(model, target)
