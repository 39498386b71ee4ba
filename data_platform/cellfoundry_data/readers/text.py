"""Text files of any size, gzipped or not."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import BinaryIO, TextIO, cast

from .location import open_binary

MAX_LINE = 2**26
"""Characters of the longest line: 60,000 genes of 1,000 characters each."""


@contextmanager
def open_bytes(path: str, gzipped: bool) -> Iterator[BinaryIO]:
    """The file's content without its compression, to be read front to back."""
    with open_binary(path) as raw:
        yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if gzipped else raw


@contextmanager
def open_text(path: str, gzipped: bool) -> Iterator[TextIO]:
    """The file's content as UTF-8 text."""
    with open_bytes(path, gzipped) as binary:
        text = TextIOWrapper(binary, encoding="utf-8-sig")
        try:
            yield text
        finally:
            text.detach()


def bounded_lines(text: TextIO) -> Iterator[str]:
    """The lines; ValueError where one is longer than any table's, as in a binary file without line ends."""
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith("\n"):
            raise ValueError(f"a line is longer than {MAX_LINE:,} characters")
        yield line
