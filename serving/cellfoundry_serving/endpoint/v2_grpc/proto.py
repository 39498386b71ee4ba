"""Message classes straight from a ``.proto`` file: the part of proto3 that ``inference.proto`` uses.

Modules that protoc generates put their messages into one pool of the process, where those of Triton's client have the
same names: the two could not be imported together. Here they live in a pool of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool

TOKEN = re.compile(r'//[^\n]*|"[^"]*"|\w+|[^\w\s]')
SCALARS = {
    name: FieldDescriptorProto.Type.Value(f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}


def read_proto(path: Path) -> FileDescriptor:
    """Messages, enums and services of a file that imports none."""
    tokens = iter([token for token in TOKEN.findall(path.read_text()) if not token.startswith("//")])
    file = FileDescriptorProto(name=path.name, syntax="proto3")
    for words in _statements(tokens):
        match words:
            case ["package", name]:
                file.package = name
            case ["message", name]:
                _read_message(tokens, file.message_type.add(name=name))
            case ["enum", name]:
                _read_enum(tokens, file.enum_type.add(name=name))
            case ["service", name]:
                _read_service(tokens, file.service.add(name=name))
    pool = DescriptorPool()
    pool.Add(file)
    return pool.FindFileByName(path.name)


def _statements(tokens: Iterator[str]) -> Iterator[list[str]]:
    """Words up to each ``;`` and ``{``, until the block ends; what follows a ``{`` is its reader's."""
    words: list[str] = []
    for token in tokens:
        if token == "}":
            return
        if token in ";{":
            yield words
            words = []
        else:
            words.append(token)


def _read_message(tokens: Iterator[str], message: DescriptorProto) -> None:
    for words in _statements(tokens):
        match words:
            case ["message", name]:
                _read_message(tokens, message.nested_type.add(name=name))
            case ["oneof", name]:
                message.oneof_decl.add(name=name)
                for choice in _statements(tokens):
                    _add_field(message, choice).oneof_index = len(message.oneof_decl) - 1
            case ["map", "<", key, ",", value, ">", name, *number]:
                entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
                entry.options.map_entry = True
                _add_field(entry, [key, "key", "=", "1"])
                _add_field(entry, [value, "value", "=", "2"])
                _add_field(message, ["repeated", entry.name, name, *number])
            case _:
                _add_field(message, words)


def _add_field(message: DescriptorProto, words: list[str]) -> FieldDescriptorProto:
    *repeated, kind, name, _, number = words
    label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    field = message.field.add(name=name, number=int(number), label=label)
    if kind in SCALARS:
        field.type = SCALARS[kind]
    else:
        field.type_name = kind  # the pool finds out whether it is a message or an enum, and where
    return field


def _read_enum(tokens: Iterator[str], enum: EnumDescriptorProto) -> None:
    for name, _, number in _statements(tokens):
        enum.value.add(name=name, number=int(number))


def _read_service(tokens: Iterator[str], service: ServiceDescriptorProto) -> None:
    for words in _statements(tokens):
        _, name, *messages = (word for word in words if word not in "()")
        request, answer = messages[: messages.index("returns")], messages[messages.index("returns") + 1 :]
        service.method.add(
            name=name,
            input_type=request[-1],
            client_streaming=len(request) > 1,
            output_type=answer[-1],
            server_streaming=len(answer) > 1,
        )
