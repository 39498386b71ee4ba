"""Reading in a thread of its own while the caller computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")

_END = object()
JOIN_S = 5.0
"""A reader may be in the middle of sorting a large file; it dies with the process."""


def read_ahead(items: Iterable[T], ahead: int = 1) -> Generator[T]:
    """Yields what ``items`` yields while a thread is up to ``ahead`` items, and the one it is at, further.

    What the thread meets as an exception is raised here, after the items before it. When the caller stops early,
    the thread ends with the item it is at.
    """
    waiting: queue.Queue[object] = queue.Queue(ahead)
    stopped = threading.Event()
    raised: list[BaseException] = []

    def put(item: object) -> None:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
        except BaseException as error:  # handed to the caller
            raised.append(error)
        put(_END)

    thread = threading.Thread(target=read, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not _END:
            yield item  # type: ignore[misc]  # of the queue's items only _END is no T
        if raised:
            raise raised[0]
    finally:
        stopped.set()
        thread.join(JOIN_S)
