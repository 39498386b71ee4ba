"""Libraries that talk: what they print, log and warn of stays out of the terminal."""

from __future__ import annotations

import io
import logging
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
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        for pattern in warned:
            warnings.filterwarnings("ignore", pattern)
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
