"""Python's ``print`` for numba, in processes where Ray has replaced it."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def numba_print() -> Iterator[None]:
    """While it lasts, or a function runs that it decorates, ``print`` is the one that numba compiles.

    Ray (2.60) replaces it in a process that shows its logs or bars, numba compiles only the one it was imported under,
    and pynndescent, by which kBET and UMAP find neighbours, has functions that print.
    """
    found = builtins.print
    rays = sys.modules.get("ray.experimental.tqdm_ray")
    if rays is not None and found is rays.safe_print and not _numba_knows(found):
        builtins.print = rays._print
    try:
        yield
    finally:
        builtins.print = found


def _numba_knows(function: object) -> bool:
    templates = sys.modules.get("numba.core.typing.templates")
    return templates is not None and any(known is function for known, _ in templates.builtin_registry.globals)
