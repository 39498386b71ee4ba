"""TensorRT 11's packed attention, put into the network of a parsed packed graph.

The graph's attention layers take all tokens of a batch as one cell's. Each becomes packed here: its tensors are turned
from padded (1, H, N, K) to (N, H, K), and the cells' bounds go in as lengths. ONNX has no attention of this kind, and
the parser's own operator for it changed its inputs between releases of TensorRT 11, which this API did not.

Legend: N tokens of all cells, H heads, K width of a head.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from cellfoundry_serving.errors import ServingError


def has_packed_attention(trt: ModuleType) -> bool:
    """Whether this TensorRT knows the packed form: releases before 11 do not."""
    return hasattr(trt, "AttentionIOForm")


def attentions(trt: ModuleType, network: Any) -> list[Any]:
    """The attention of each attention layer; none in releases before 10.14, which parse it as plain operations."""
    boundary = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == boundary:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings' way to downcast
            found.append(layer.attention)
    return found


def pack_attention(trt: ModuleType, network: Any) -> None:
    """Makes every attention packed, with bounds from the network's input ``cu_seqlens``; ServingError without any."""
    found = attentions(trt, network)
    if not found:
        raise ServingError(
            "TensorRT parsed the graph's attention as plain operations, which cannot be packed."
        )
    bounds = {network.get_input(index).name: network.get_input(index) for index in range(network.num_inputs)}
    query_bounds = bounds["cu_seqlens"]
    # Two tensors of the same numbers: one in both places is said to crash TensorRT, which could not be tried.
    key_bounds = network.add_identity(query_bounds).get_output(0)
    for attention in found:
        pack(trt, network, attention, query_bounds, key_bounds)


def pack(trt: ModuleType, network: Any, attention: Any, query_bounds: Any, key_bounds: Any) -> None:
    """Makes one attention packed and hands its users what they had; ServingError where it stays padded."""
    output = attention.get_output(0)
    _, heads, _, width = output.shape
    users = users_of(network, output.name)
    for index in range(3):
        shuffle = network.add_shuffle(attention.get_input(index))
        shuffle.first_transpose = (0, 2, 1, 3)
        shuffle.reshape_dims = (-1, heads, width)
        attention.set_input(index, shuffle.get_output(0))
    attention.query_form = attention.key_value_form = trt.AttentionIOForm.PACKED_NHD
    attention.query_lengths, attention.key_value_lengths = query_bounds, key_bounds
    if len(output.shape) != 3:
        raise ServingError("TensorRT did not take the packed form of an attention.")
    shuffle = network.add_shuffle(output)
    shuffle.reshape_dims = (1, -1, heads, width)
    shuffle.second_transpose = (0, 2, 1, 3)
    for layer, index in users:
        layer.set_input(index, shuffle.get_output(0))


def users_of(network: Any, name: str) -> list[tuple[Any, int]]:
    """Layers that take the tensor ``name``, and as which input."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return [
        (layer, index)
        for layer in layers
        for index in range(layer.num_inputs)
        if layer.get_input(index) is not None and layer.get_input(index).name == name
    ]
