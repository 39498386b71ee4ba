"""What the clients do when the endpoint is busy, restarts, or is none; waits are observed, not waited for."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import Handler, Step, answer, counted, embedding, scripted, send

from cellfoundry_serving.client import AsyncClient, Client, asynchronous, retry, sync
from cellfoundry_serving.client.retry import Deadline, Tries, backoff_s, retry_after_s
from cellfoundry_serving.errors import ServingError

READY = answer(200, b'[{"name": "cell", "state": "READY"}]')
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n[{"
TROUBLES = {
    "429": answer(429, Retry_After="3"),
    "502": answer(502, b"<html>Bad Gateway</html>"),
    "503": answer(503),
    "408": answer(408),
    "reset": send(b"", reset=True),
    "reset midway": send(CUT, reset=True),
    "cut": send(CUT),
    "silent end": send(b""),
    "no http": send(b"\x15\x03\x01\x00\x02\x02\x16"),
}


class Clock:
    """Time that passes when someone sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.waits: list[float] = []
        self.meanwhile: Callable[[], object] = lambda: None  # happens in the first wait
        monkeypatch.setattr(retry, "monotonic", lambda: self.now)
        monkeypatch.setattr(sync, "sleep", self.sleep)
        monkeypatch.setattr(asynchronous, "sleep", self.sleep_async)

    def sleep(self, seconds: float) -> None:
        if not self.waits:
            self.meanwhile()
        self.waits.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def models_sync(url: str, **options: Any) -> list[str]:
    with Client(url, **options) as client:
        return client.models()


def models_async(url: str, **options: Any) -> list[str]:
    async def main() -> list[str]:
        async with AsyncClient(url, **options) as client:
            return await client.models()

    return asyncio.run(main())


@pytest.fixture(params=[models_sync, models_async], ids=["sync", "async"])
def models(request: pytest.FixtureRequest) -> Callable[..., list[str]]:
    """``models()`` of either client."""
    return request.param


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_what_passes_is_tried_again(models: Callable[..., list[str]], clock: Clock, trouble: Step) -> None:
    with scripted(trouble, trouble, READY) as server:
        assert models(server.url) == ["cell"]
    least = 3 if trouble is TROUBLES["429"] else 0
    assert len(clock.waits) == 2
    for wait, bound in zip(clock.waits, (0.5, 1.0), strict=True):
        assert least <= wait <= least + bound


def test_an_endpoint_that_starts_late_is_waited_for(models: Callable[..., list[str]], clock: Clock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ExitStack() as stack:
        clock.meanwhile = lambda: stack.enter_context(scripted(READY, port=port))
        assert models(f"http://127.0.0.1:{port}") == ["cell"]
    assert len(clock.waits) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500, 504])
def test_what_stays_is_asked_once(models: Callable[..., list[str]], clock: Clock, status: int) -> None:
    with scripted(answer(status, Retry_After="1")) as server:
        with pytest.raises(ServingError, match=f"answered {status}: Come back later"):
            models(server.url)
        assert len(server.paths) == 1
    assert clock.waits == []


def test_the_last_error_says_how_often_it_was_tried(models: Callable[..., list[str]], clock: Clock) -> None:
    with (
        scripted(send(b"", reset=True), answer(503)) as server,
        pytest.raises(
            ServingError, match=f"^{server.url} answered 503 at the last of 3 tries: Come back later.$"
        ),
    ):
        models(server.url, retries=2)
    with scripted(send(b"", reset=True)) as server:
        with pytest.raises(ServingError, match=r"cannot be reached at the last of 6 tries \(.+\); is `cellf"):
            models(server.url)
        assert len(server.paths) == 6
        with pytest.raises(ServingError, match=r"cannot be reached \(.+\); is `cellfoundry serve`"):
            models(server.url, retries=0)
        assert len(server.paths) == 7


def test_no_wait_ends_after_the_deadline(models: Callable[..., list[str]], clock: Clock) -> None:
    with (
        scripted(answer(429, Retry_After="4")) as server,
        pytest.raises(ServingError, match="answered 429 at the last of 3 tries"),
    ):
        models(server.url, deadline_s=11)
    assert len(clock.waits) == 2  # the third would end after 12 s at least
    assert clock.now < 1011


def test_an_endpoint_that_never_answers_costs_no_more_than_the_deadline(
    models: Callable[..., list[str]],
) -> None:
    left = threading.Event()
    with scripted(lambda handler: left.wait(30)) as server:
        try:
            with pytest.raises(ServingError, match=r"did not answer in time; send fewer cells at once"):
                models(server.url, deadline_s=0.2)
            assert len(server.paths) == 1
        finally:
            left.set()


def test_the_deadline_is_of_all_requests_together(clock: Clock) -> None:
    def slow(handler: Handler) -> None:
        clock.now += 6
        embedding(handler)

    with scripted(slow) as server, Client(server.url, deadline_s=10, request_cells=1) as client:
        with pytest.raises(ServingError, match="10 s were not enough; send fewer cells or raise deadline_s"):
            client.embed(counted(3), model="cell")
        assert len(server.paths) == 2


@given(tries=st.integers(1, 10_000))
def test_backoff_doubles_up_to_its_bound(tries: int) -> None:
    assert 0 <= backoff_s(tries) <= min(30, 0.5 * 2 ** min(tries - 1, 20))


@given(
    text=st.text(st.characters(max_codepoint=255), max_size=40)
    | st.integers().map(str)
    | st.datetimes().map(str)
)
def test_any_retry_after_gives_a_bounded_wait(text: str) -> None:
    response = httpx.Response(429, headers=[(b"Retry-After", text.encode("latin-1"))])
    assert 0 <= retry_after_s(response) <= 120


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("0", 0, 0),
        ("7", 7, 7),
        ("86400", 120, 120),
        ("-1", 0, 0),
        ("1.5", 0, 0),
        ("soon", 0, 0),
    ],
)
def test_retry_after_in_seconds(text: str, least: float, most: float) -> None:
    assert least <= retry_after_s(httpx.Response(503, headers={"Retry-After": text})) <= most


def test_retry_after_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    assert 35 < retry_after_s(httpx.Response(503, headers={"Retry-After": later})) <= 40
    earlier = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    assert retry_after_s(httpx.Response(503, headers={"Retry-After": earlier})) == 0


@given(
    retries=st.integers(0, 20),
    deadline_s=st.floats(0.1, 1000),
    retry_after=st.integers(0, 300),
)
def test_waits_stay_within_the_deadline(retries: int, deadline_s: float, retry_after: int) -> None:
    """Whatever the endpoint asks for: no more tries than allowed, no wait beyond the deadline."""
    now = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "monotonic", lambda: now)
        tries = Tries(retries, Deadline(deadline_s))
        refused = httpx.Response(429, headers={"Retry-After": str(retry_after)})
        while (wait := tries.wait_s(refused)) is not None:
            assert wait >= min(retry_after, 120)
            now += wait
    assert now < deadline_s
    assert tries.made <= retries + 1
