"""Sparse matrices in HDF5 whose chunks are LZF, decoded here and straight into their place.

Half of the first pass of an ingest was HDF5's own way: it decodes into a cache, copies from there, and its decoder
moves single bytes. The stream (LibLZF by Marc Lehmann; h5py's ``lzf``, HDF5 filter 32000) is a row of tokens. A token
below 32 announces that many and one more bytes to take as they are; another one holds in its upper three bits the
length of a copy less 2 (7 means that a byte more of length follows) and, with the byte after, how far back the copy
begins, less 1.
"""

from __future__ import annotations

from typing import Any

import h5py
import numba
import numpy as np
import numpy.typing as npt

LZF_FILTER = 32000
MAX_CHUNK_BYTES = 2**26


class LzfArray:
    """A one-dimensional dataset compressed by LZF alone; see ``is_lzf``.

    Args:
        dataset: the dataset, of an open file.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self._chunk: int = dataset.chunks[0]
        # The chunk that two blocks of rows share is decoded once.
        self._edge = -1
        self._edge_values = np.empty(self._chunk, dataset.dtype)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Elements [start, stop), within the dataset.

        Raises:
            ValueError: a chunk is damaged.
        """
        out = np.empty(stop - start, self._dataset.dtype)
        for chunk in range(start // self._chunk, -(-stop // self._chunk) if stop > start else 0):
            first = chunk * self._chunk
            if start <= first and first + self._chunk <= stop:
                self._decode(chunk, out[first - start : first - start + self._chunk])
                continue
            if chunk != self._edge:
                self._edge = -1  # nothing valid is held if decoding fails
                self._decode(chunk, self._edge_values)
                self._edge = chunk
            low, high = max(start, first), min(stop, first + self._chunk)
            out[low - start : high - start] = self._edge_values[low - first : high - first]
        return out

    def _decode(self, chunk: int, values: npt.NDArray[Any]) -> None:
        """Fill ``values`` with all of a chunk; one that is not stored is the fill value, as in h5py."""
        first, dataset = chunk * self._chunk, self._dataset.id
        try:
            skipped, stored = dataset.read_direct_chunk((first,))
        except (OSError, RuntimeError, ValueError):
            # Asked after the fact, because HDF5 looks through all chunks to answer: 0.1 ms among 4,096.
            if dataset.get_chunk_info_by_coord((first,)).size:
                raise ValueError(f"chunk {chunk} of {self._dataset.name} cannot be read") from None
            values[:] = self._dataset.fillvalue
            return
        source, out = np.frombuffer(stored, np.uint8), values.view(np.uint8)
        if skipped:  # a chunk that LZF would have made larger
            if len(source) != len(out):
                raise ValueError(f"chunk {chunk} of {self._dataset.name} has the wrong size")
            out[:] = source
        elif decompress(source, out) != len(out):
            raise ValueError(f"chunk {chunk} of {self._dataset.name} does not decompress")


def is_lzf(array: Any) -> bool:
    """Whether ``LzfArray`` reads what HDF5 would: one dimension of plain numbers, and LZF as the only filter."""
    if not isinstance(array, h5py.Dataset) or array.ndim != 1 or array.compression != "lzf":
        return False
    filters = array.id.get_create_plist()
    return (
        array.dtype.kind in "iuf"
        and array.dtype.isnative
        and filters.get_nfilters() == 1
        and filters.get_filter(0)[0] == LZF_FILTER
        and array.chunks[0] * array.dtype.itemsize <= MAX_CHUNK_BYTES
    )


# Positions are unsigned: numba asks of each signed index whether it is negative. Unsigned and signed numbers together
# would become floats, so the constants are unsigned, too.
_1, _2, _3, _4, _5, _7, _8, _31, _32 = (np.uint64(number) for number in (1, 2, 3, 4, 5, 7, 8, 31, 32))
_C5, _C8, _C16, _C24, _UPPER = (np.uint32(number) for number in (5, 8, 16, 24, 0xFFFFFF00))
_BAD = np.uint64(2**63)


@numba.njit(nogil=True, cache=True, inline="always")
def _copy_4(source, at, out, to):  # type: ignore[no-untyped-def]
    """Four bytes: all read before any is written, so that it becomes one load and one store."""
    a, b, c, d = source[at], source[at + _1], source[at + _2], source[at + _3]
    out[to], out[to + _1], out[to + _2], out[to + _3] = a, b, c, d


@numba.njit(nogil=True, cache=True, inline="always")
def _copy_3_behind(byte, source, at, out, to):  # type: ignore[no-untyped-def]
    """``byte``, then the three bytes of ``source`` that follow ``at``, as ``_copy_4`` does it."""
    a, b, c, d = source[at], source[at + _1], source[at + _2], source[at + _3]
    word = (
        np.uint32(a) | np.uint32(b) << _C8 | np.uint32(c) << _C16 | np.uint32(d) << _C24
    ) & _UPPER | np.uint32(byte)
    out[to], out[to + _1] = np.uint8(word), np.uint8(word >> _C8)
    out[to + _2], out[to + _3] = np.uint8(word >> _C16), np.uint8(word >> _C24)


@numba.njit(nogil=True, cache=True)
def decompress(source: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> np.uint64:
    """Decode an LZF stream into ``out``; the bytes written, or 2^63 where the stream is none or does not fit.

    Copies run over their end by up to 7 bytes where there is room; what follows overwrites them.
    """
    at, to = np.uint64(0), np.uint64(0)
    n, size = np.uint64(len(source)), np.uint64(len(out))
    while at < n:
        token = np.uint64(source[at])
        at += _1
        if token < _32:
            if token == 0 and at + _3 <= n and to + _4 <= size and source[at + _1] >> _C5 == 1:
                # A number whose lowest byte alone is new, as most column indices are. Bytes written one by one and
                # read back as four make the processor wait: 8 ns an index where this takes 3.
                back = ((np.uint64(source[at + _1]) & _31) << _8) + np.uint64(source[at + _2]) + _1
                if _4 <= back <= to:
                    _copy_3_behind(source[at], out, to - back, out, to)
                    at += _3
                    to += _4
                    continue
            length = token + _1
            if at + length > n or to + length > size:
                return _BAD
            if at + length + _8 <= n and to + length + _8 <= size:
                _copy_4(source, at, out, to)
                _copy_4(source, at + _4, out, to + _4)
                done = _8
                while done < length:
                    _copy_4(source, at + done, out, to + done)
                    _copy_4(source, at + done + _4, out, to + done + _4)
                    done += _8
            else:
                for entry in range(length):
                    out[to + np.uint64(entry)] = source[at + np.uint64(entry)]
            at += length
            to += length
            continue
        length = token >> _5
        if length == _7:
            if at >= n:
                return _BAD
            length += np.uint64(source[at])
            at += _1
        length += _2
        if at >= n:
            return _BAD
        back = ((token & _31) << _8) + np.uint64(source[at]) + _1
        at += _1
        if back > to or to + length > size:
            return _BAD
        begin = to - back
        if back >= _4 and to + length + _8 <= size:
            _copy_4(out, begin, out, to)
            _copy_4(out, begin + _4, out, to + _4)
            done = _8
            while done < length:
                _copy_4(out, begin + done, out, to + done)
                _copy_4(out, begin + done + _4, out, to + done + _4)
                done += _8
        else:
            for entry in range(length):
                out[to + np.uint64(entry)] = out[begin + np.uint64(entry)]
        to += length
    return to
