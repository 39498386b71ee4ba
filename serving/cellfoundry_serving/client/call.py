"""One request with the reading of its answer, and the sentence where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar

import httpx
import pyarrow as pa

from cellfoundry_serving.errors import ServingError

Result = TypeVar("Result")
Outcome: TypeAlias = httpx.Response | httpx.RequestError
"""What one try of a request ends with."""

UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError, pa.ArrowException)
"""What reading the answer of something that is no endpoint raises."""
TOO_MUCH_AT_ONCE = (413, 504)
MAX_REASON = 500  # characters of an answer that an error repeats


@dataclass(frozen=True)
class Call(Generic[Result]):
    """A request to the endpoint.

    Attributes:
        method: of HTTP.
        path: below the endpoint's URL.
        read: makes the result of a successful answer; raises one of ``UNREADABLE``.
        params: the query.
        headers: beside those of every request.
        content: the body.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], Result]
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keywords of httpx's ``request``."""
        return {
            "method": self.method,
            "url": self.path,
            "params": self.params,
            "headers": self.headers,
            "content": self.content,
        }


def result_of(call: Call[Result], outcome: Outcome, url: str, tries: int) -> Result:
    """What the last of ``tries`` tries has brought; ServingError where that is no result."""
    at_last = "" if tries == 1 else f" at the last of {tries} tries"
    if isinstance(outcome, httpx.RequestError):
        fail(outcome, url, at_last)
    if not outcome.is_success:
        raise ServingError(f"{url} answered {outcome.status_code}{at_last}: {refusal(outcome)}")
    try:
        return call.read(outcome)
    except UNREADABLE as error:
        raise ServingError(
            f"{url} answered {call.method} {call.path} with what no CellFoundry endpoint sends "
            f"({type(error).__name__}: {str(error)[:MAX_REASON]}); check the URL."
        ) from error


def fail(error: httpx.RequestError, url: str, at_last: str) -> NoReturn:
    """ServingError for a request without an answer."""
    if isinstance(error, httpx.ReadTimeout):
        raise ServingError(
            f"{url} did not answer in time{at_last}; send fewer cells at once (request_cells) or wait longer "
            "(timeout_s, deadline_s)."
        ) from error
    reason = str(error).rstrip(".") or type(error).__name__
    raise ServingError(
        f"{url} cannot be reached{at_last} ({reason}); is `cellfoundry serve` running?"
    ) from error


def refusal(response: httpx.Response) -> str:
    """The endpoint's own sentence, and which option of the client it is about."""
    try:
        reason = str(response.json()["error"])[:MAX_REASON]
    except UNREADABLE:
        return "so answers no CellFoundry endpoint, but perhaps a proxy before one; check the URL."
    if response.status_code in TOO_MUCH_AT_ONCE:
        return f"{reason.rstrip('.')} (the client's option request_cells)."
    return reason
