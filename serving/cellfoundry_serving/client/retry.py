"""Which failures are worth another try, and when: exponential backoff with full jitter.

All requests of the client may be repeated: they change nothing at the endpoint.
"""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic

import httpx

from cellfoundry_serving.client.call import Outcome
from cellfoundry_serving.errors import ServingError

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0  # of backoff
LONGEST_RETRY_AFTER_S = 120.0  # a server that asks for more is asked again after this
RETRIED_STATUS = frozenset({408, 429, 502, 503})
"""The body came too slowly, the queue is full, or a proxy finds no endpoint that takes requests.

504 is not among them: the endpoint (or a proxy) has worked on the request for its whole timeout, 600 s by default,
so another try would put the same work once more behind the same queue and fail an hour later. The remedy is a smaller
request.
"""
LASTING_FAILURES = (
    httpx.ReadTimeout,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    httpx.DecodingError,
)
"""Of requests without an answer: one that took too long, as 504, and what no other try can mend."""


class Deadline:
    """When a method of the client must be done, all its requests, tries and waits."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = math.inf if seconds is None else monotonic() + seconds

    def left_s(self) -> float:
        """Seconds until then; infinite without a deadline."""
        return self._end - monotonic()


class Tries:
    """Tries of one request.

    Attributes:
        made: how many there have been.
    """

    def __init__(self, retries: int, deadline: Deadline) -> None:
        self.made = 0
        self._retries = retries
        self._deadline = deadline

    def timeout_s(self, timeout_s: float) -> float:
        """How long the next one may wait for the endpoint; ServingError where no time is left."""
        left = self._deadline.left_s()
        if left <= 0:
            raise ServingError(
                f"{self._deadline.seconds:g} s were not enough; send fewer cells or raise deadline_s."
            )
        return min(timeout_s, left)

    def wait_s(self, outcome: Outcome) -> float | None:
        """Counts a try; seconds to wait before the next, or None where there is none.

        A wait that Retry-After asks for is kept, and the jitter comes on top: clients refused together would else
        come back together.
        """
        self.made += 1
        if self.made > self._retries or not may_pass(outcome):
            return None
        wait = backoff_s(self.made) + retry_after_s(outcome)
        return wait if wait < self._deadline.left_s() else None


def may_pass(outcome: Outcome) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(outcome, httpx.RequestError):
        return not isinstance(outcome, LASTING_FAILURES)
    return outcome.status_code in RETRIED_STATUS


def backoff_s(tries: int) -> float:
    """Wait after ``tries`` failures: anything up to a bound that doubles each time.

    Full jitter of Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
    """
    bound = min(LONGEST_WAIT_S, math.ldexp(FIRST_WAIT_S, min(tries - 1, 10)))
    return random.uniform(0, bound)


def retry_after_s(outcome: Outcome) -> float:
    """Seconds that the answer's Retry-After asks to wait, which gives seconds or a date (RFC 9110, 10.2.3).

    0 where there is none that can be read, at most ``LONGEST_RETRY_AFTER_S``.
    """
    text = outcome.headers.get("Retry-After", "") if isinstance(outcome, httpx.Response) else ""
    if text.isascii() and text.isdigit():
        seconds = float(text[:10])
    else:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):  # TypeError: a date without a time zone
            return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)
