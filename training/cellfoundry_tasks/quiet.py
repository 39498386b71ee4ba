"""Libraries that talk: what they print, log and warn of stays out of the terminal."""

from __future__ import annotations

import builtins
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

EVERY_WARNING = ".*"


@contextmanager
def quiet(*warned: str) -> Iterator[None]:
    """While it lasts nothing is printed, loggers speak of errors only, and warnings whose text begins with one of the
    patterns ``warned`` are not shown: those that say nothing of the cells.
    """
    disabled = logging.root.manager.disable
    with redirect_stdout(io.StringIO()), warnings.catch_warnings(), _print_of_numba():
        for pattern in warned:
            warnings.filterwarnings("ignore", pattern)
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


@contextmanager
def _print_of_numba() -> Iterator[None]:
    """While it lasts ``print`` is the one that numba compiles.

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
