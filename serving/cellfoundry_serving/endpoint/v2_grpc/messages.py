"""The protocol's service and messages, as ``inference.proto`` beside this file describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.message_factory import GetMessageClass

from cellfoundry_serving.endpoint.v2_grpc.proto import read_proto

FILE = read_proto(Path(__file__).with_name("inference.proto"))
SERVICE = FILE.services_by_name["GRPCInferenceService"]


def message_class(name: str) -> Any:
    """Of a message at the top of the file."""
    return GetMessageClass(FILE.message_types_by_name[name])


ModelInferResponse = message_class("ModelInferResponse")
ModelStreamInferResponse = message_class("ModelStreamInferResponse")
