"""What was used last, made again when it is asked for after it was dropped."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Thing = TypeVar("Thing")


class Recent(Generic[Key, Thing]):
    """A bounded number of things by key, for any number of threads; a forked process begins with none.

    Dropping a thing only forgets it: who still uses it keeps it alive.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._state = self._nothing()

    def get(self, key: Key, make: Callable[[Key], Thing]) -> Thing:
        """The thing of ``key``, made by ``make(key)`` where it is not at hand."""
        process, lock, things = self._state
        if process != os.getpid():  # a thread of the parent may have held the lock
            _, lock, things = self._state = self._nothing()  # in one step: threads of the child come here too
        with lock:
            if key in things:
                things.move_to_end(key)
                return things[key]
        thing = make(key)
        with lock:
            things[key] = thing
            if len(things) > self._limit:
                things.popitem(last=False)
        return thing

    def _nothing(self) -> tuple[int, threading.Lock, OrderedDict[Key, Thing]]:
        return os.getpid(), threading.Lock(), OrderedDict()
