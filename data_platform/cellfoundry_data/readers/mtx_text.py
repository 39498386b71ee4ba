"""Matrix-market text (coordinate form), parsed piece by piece: 40 M entries a minute and core at least."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numba
import numpy as np
import numpy.typing as npt

from .unordered import Entries

PIECE_BYTES = 2**24
MAX_HEADER_LINES = 10_000

_NEWLINE, _RETURN, _SPACE, _TAB, _DOT, _MINUS, _PLUS, _ZERO, _E_UPPER, _E_LOWER = (
    ord(character) for character in "\n\r \t.-+0Ee"
)


@dataclass(frozen=True)
class MtxHeader:
    """What the first lines say.

    Attributes:
        n_rows: of the matrix.
        n_columns: of the matrix.
        n_entries: lines that follow.
        pattern: entries have no value; each counts 1.
    """

    n_rows: int
    n_columns: int
    n_entries: int
    pattern: bool


def read_header(file: BinaryIO) -> MtxHeader:
    """Read the first lines, up to the one with the sizes; ValueError where they are not understood."""
    banner = file.readline(1024).decode("ascii", "replace").lower().split()
    if len(banner) != 5 or banner[:3] != ["%%matrixmarket", "matrix", "coordinate"]:
        raise ValueError("it does not begin with %%MatrixMarket matrix coordinate")
    if banner[3] not in ("integer", "real", "pattern") or banner[4] != "general":
        raise ValueError(
            f"its kind is {banner[3]} {banner[4]}, where integer, real or pattern general is understood"
        )
    for _ in range(MAX_HEADER_LINES):
        line = file.readline(2**16)
        if not line:
            break
        if line.strip() and not line.startswith(b"%"):
            sizes = [int(size) for size in line.split()]
            if len(sizes) == 3 and min(sizes) >= 0:
                return MtxHeader(sizes[0], sizes[1], sizes[2], pattern=banner[3] == "pattern")
            break
    raise ValueError("it has no line with the numbers of rows, columns and entries")


def entries(file: BinaryIO, header: MtxHeader) -> Iterator[Entries]:
    """(rows, columns, values) of the lines after the header, indices from 0; ValueError where a line is damaged."""
    read, rest = 0, b""
    while piece := file.read(PIECE_BYTES):
        text = rest + piece
        end = text.rfind(b"\n") + 1
        rest = text[end:]
        if len(rest) > 1024:
            raise ValueError("a line is longer than any entry")
        found = _parse(text[:end], header.pattern, read)
        read += len(found[0])
        yield found
    if rest:
        found = _parse(rest + b"\n", header.pattern, read)
        read += len(found[0])
        yield found
    if read != header.n_entries:
        raise ValueError(f"it holds {read:,} entries where its header says {header.n_entries:,}")


def _parse(text: bytes, pattern: bool, before: int) -> Entries:
    characters = np.frombuffer(text, np.uint8)
    size = int(np.count_nonzero(characters == _NEWLINE))
    rows, columns, values = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.float32)
    n_found, sound = _parse_lines(characters, pattern, rows, columns, values)
    if not sound:
        raise ValueError(f"entry {before + n_found:,} is not a row, a column and a number")
    return rows[:n_found] - 1, columns[:n_found] - 1, values[:n_found]


@numba.njit(nogil=True, cache=True)
def _parse_lines(  # type: ignore[no-untyped-def]
    text,
    pattern: bool,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
):
    """Fill the arrays from lines that each end in a newline; (entries found, whether all lines were sound)."""
    at, found = 0, 0
    fields = np.zeros(3, np.float64)
    while at < len(text):
        n_fields = 0
        while True:
            while text[at] == _SPACE or text[at] == _TAB or text[at] == _RETURN:
                at += 1
            if text[at] == _NEWLINE:
                at += 1
                break
            if n_fields == (2 if pattern else 3):
                return found, False
            at, number, whole, sound = _parse_number(text, at)
            if not sound or (n_fields < 2 and not whole):
                return found, False
            fields[n_fields] = number
            n_fields += 1
        if n_fields == 0:
            continue
        if n_fields != (2 if pattern else 3):
            return found, False
        rows[found], columns[found] = np.int64(fields[0]), np.int64(fields[1])
        values[found] = 1 if pattern else fields[2]
        found += 1
    return found, True


@numba.njit(nogil=True, cache=True)
def _parse_number(text, at):  # type: ignore[no-untyped-def]
    """(position after it, number, whether it has digits only, whether it is one) of the text at ``at``."""
    negative = text[at] == _MINUS
    if negative or text[at] == _PLUS:
        at += 1
    number, exponent, digits, whole = 0.0, 0, 0, not negative
    while _ZERO <= text[at] < _ZERO + 10:
        number = number * 10 + (text[at] - _ZERO)
        at, digits = at + 1, digits + 1
    if text[at] == _DOT:
        at, whole = at + 1, False
        while _ZERO <= text[at] < _ZERO + 10:
            number = number * 10 + (text[at] - _ZERO)
            at, digits, exponent = at + 1, digits + 1, exponent - 1
    if digits > 0 and (text[at] == _E_LOWER or text[at] == _E_UPPER):
        at, whole = at + 1, False
        fall = text[at] == _MINUS
        if fall or text[at] == _PLUS:
            at += 1
        power, power_digits = 0, 0
        while _ZERO <= text[at] < _ZERO + 10:
            power = min(power * 10 + (text[at] - _ZERO), 10_000)
            at, power_digits = at + 1, power_digits + 1
        digits = min(digits, power_digits)
        exponent += -power if fall else power
    if exponent < 0:
        number /= 10.0**-exponent
    elif exponent > 0:
        number *= 10.0**exponent
    ended = text[at] == _SPACE or text[at] == _TAB or text[at] == _RETURN or text[at] == _NEWLINE
    return at, -number if negative else number, whole and number < 2**53, digits > 0 and ended
