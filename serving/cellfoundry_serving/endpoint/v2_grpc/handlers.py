"""gRPC's handlers around the calls: who may ask, and answers or refusals one by one or in a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from cellfoundry_serving.endpoint.api_keys import KEY_NEEDED, ApiKeys
from cellfoundry_serving.endpoint.aside import aside
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.request_record import ID_NAME, TOLD, RequestRecord
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.v2_grpc.calls import Call
from cellfoundry_serving.endpoint.v2_grpc.messages import SERVICE, ModelStreamInferResponse, message_class
from cellfoundry_serving.endpoint.v2_grpc.refusals import STOPPING, Refusal, noted
from cellfoundry_serving.endpoint.v2_grpc.stream import answer_stream

OPEN_CALLS = frozenset({"ServerLive", "ServerReady"})
"""Probes of an orchestrator carry no key and learn nothing."""
INFER, STREAM = "ModelInfer", "ModelStreamInfer"
MARK_FINAL, FINAL = "triton_enable_empty_final_response", "triton_final_response"
"""A request of a stream may ask for a mark on its last answer, of which there is only one here."""


class Handlers:
    """Of all calls of the service; they take bytes, so that a damaged message gets a sentence too.

    Args:
        calls: by name.
        service: told of each answer.
        keys: without them anyone who reaches it may ask.
        draining: once it is set, calls are refused, and streams end after the requests they have in hand.

    Attributes:
        idle: set while no call that came before draining waits for its answer.
    """

    def __init__(
        self, calls: dict[str, Call], service: Service, keys: ApiKeys | None, draining: asyncio.Event
    ) -> None:
        self._calls = calls
        self._service = service
        self._keys = keys
        self._draining = draining
        self._in_hand = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._requests = {method.name: message_class(method.input_type.name) for method in SERVICE.methods}
        self._answers = {method.name: message_class(method.output_type.name) for method in SERVICE.methods}

    def generic(self) -> grpc.GenericRpcHandler:
        """For ``grpc.aio.Server``; calls that it does not have are UNIMPLEMENTED."""
        # As streams on our side, which costs 0.06 of 0.88 ms: gRPC would read the one message of a unary call before
        # it calls us, and wait for one that never comes for ever, as one of MAX_CALLS.
        handlers = {name: grpc.stream_unary_rpc_method_handler(self._unary(name)) for name in self._calls}
        handlers[STREAM] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)

    def _take(self, context: Any) -> None:
        """Counts a call that came before draining until all of its answer is with the kernel."""
        if not self._draining.is_set():
            self._in_hand += 1
            self.idle.clear()
            context.add_done_callback(self._ended)

    def _ended(self, _: Any) -> None:
        self._in_hand -= 1
        if not self._in_hand:
            self.idle.set()

    def _admits(self, context: Any) -> bool:
        return self._keys is None or self._keys.allow(dict(context.invocation_metadata()))

    def _unary(self, name: str) -> Callable[[Any, Any], Any]:
        async def handle(_: Any, context: Any) -> bytes | None:
            self._take(context)
            try:
                with noted(self._service, name, told(context)) as record:
                    record.client = client_of(context)
                    context.set_trailing_metadata(((ID_NAME, record.id),))
                    if self._draining.is_set():
                        raise RequestError(STOPPING, 503)
                    if name not in OPEN_CALLS and not self._admits(context):
                        raise RequestError(KEY_NEEDED, 401)
                    content = await read_message(context, self._service.limits)
                    with self._service.bodies.request() as hold:
                        hold(len(content))
                        return await self._answered(name, content, record)
            except Refusal as refusal:
                trailing = (*context.trailing_metadata(), *refusal.trailing)
                return await context.abort(refusal.code, str(refusal), trailing)

        return handle

    async def _answered(self, name: str, content: bytes, record: RequestRecord) -> bytes:
        record.bytes_in = len(content)
        request = await aside(len(content), partial(parsed, self._requests[name], content))
        answer = await self._calls[name](request)
        if isinstance(answer, dict):
            answer = ParseDict(answer, self._answers[name]())
        return await aside(answer.ByteSize(), partial(serialized, answer, record))

    async def _stream(self, _: Any, context: Any) -> None:
        self._take(context)
        try:
            if not self._admits(context):
                with noted(self._service, STREAM, told(context)) as record:
                    record.client = client_of(context)
                    raise RequestError(KEY_NEEDED, 401)
            await answer_stream(context, partial(self._streamed, context), self._draining)
        except Refusal as refusal:
            trailing = (*context.trailing_metadata(), *refusal.trailing)
            await context.abort(refusal.code, str(refusal), trailing)

    async def _streamed(self, context: Any, content: bytes) -> bytes:
        """The answer to one request of a stream, which goes on after an error."""
        request_id = ""
        try:
            with (
                noted(self._service, STREAM, told(context)) as record,
                self._service.bodies.request() as hold,
            ):
                record.client, record.bytes_in = client_of(context), len(content)
                hold(len(content))
                request = await aside(len(content), partial(parsed, self._requests[STREAM], content))
                request_id = request.id
                mark = MARK_FINAL in request.parameters
                if mark:
                    del request.parameters[MARK_FINAL]
                answer = await self._calls[INFER](request)
                if mark:
                    answer.parameters[FINAL].bool_param = True
                streamed = ModelStreamInferResponse(infer_response=answer)
                return await aside(streamed.ByteSize(), partial(serialized, streamed, record))
        except Refusal as refusal:
            refused = ModelStreamInferResponse(error_message=str(refusal), infer_response={"id": request_id})
            return serialized(refused, record)


def told(context: Any) -> dict[str, str]:
    """What a record begins with."""
    return {name: value for name, value in context.invocation_metadata() if name in TOLD}


def client_of(context: Any) -> str:
    """Where a call comes from, which gRPC tells as ``ipv4:ADDRESS:PORT``."""
    return unquote(context.peer()).partition(":")[2].rpartition(":")[0].strip("[]")


async def read_message(context: Any, limits: Limits) -> bytes:
    """The one message of a call; RequestError where it does not arrive in time, or is none that gRPC takes."""
    try:
        async with asyncio.timeout(limits.timeout_s):
            content = await context.read()
    except TimeoutError as error:
        raise RequestError(f"The message did not arrive within {limits.timeout_s:g} s.", 408) from error
    if content is grpc.aio.EOF:
        raise RequestError(f"There is no message, or it is larger than {limits.body_bytes} bytes.", 413)
    return bytes(content)


def parsed(request_class: Any, content: bytes) -> Any:
    """The message; RequestError where it is none."""
    try:
        return request_class.FromString(content)
    except DecodeError as error:
        raise RequestError(f"The request is no valid {request_class.DESCRIPTOR.name}.") from error


def serialized(answer: Any, record: RequestRecord) -> bytes:
    """The message as bytes, whose number is noted."""
    content: bytes = answer.SerializeToString()
    record.bytes_out = len(content)
    return content
