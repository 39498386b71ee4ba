"""LZF chunks decoded here: the same numbers as HDF5 gives, and nothing but ValueError for damaged ones."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cellfoundry_data.readers.complete import CompleteArray
from cellfoundry_data.readers.lzf import LzfArray, decompress, is_lzf

IN_ONE_FOLDER = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


@IN_ONE_FOLDER
@given(data=st.data())
def test_any_range_is_what_hdf5_reads(tmp_path: Path, data: st.DataObject) -> None:
    seed, size = data.draw(st.integers(0, 1000)), data.draw(st.integers(1, 3000))
    dtype = np.dtype(data.draw(st.sampled_from(["u1", "i2", "i4", "i8", "f4", "f8", "u8"])))
    # Few values make long copies, many make chunks that LZF leaves as they are.
    values = np.random.default_rng(seed).integers(0, data.draw(st.sampled_from([1, 2, 5, 100])), size)
    if data.draw(st.booleans()):
        values = np.cumsum(values)
    if data.draw(st.booleans()):
        values = np.random.default_rng(seed).integers(0, 2**62, size)
    chunk = data.draw(st.integers(1, 700))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values.astype(dtype), chunks=(min(chunk, size),), compression="lzf")
    with h5py.File(tmp_path / "a.h5") as file:
        assert is_lzf(file["x"])
        array, whole = LzfArray(file["x"]), file["x"][:]
        for _ in range(4):  # one after the other, because the array remembers a chunk
            start = data.draw(st.integers(0, size))
            stop = data.draw(st.integers(start, size))
            got = array.read(start, stop)
            assert got.dtype == whole.dtype
            np.testing.assert_array_equal(got, whole[start:stop])


@IN_ONE_FOLDER
@given(stream=st.binary(max_size=200), size=st.integers(0, 300))
@example(stream=b"\x00\x07\xff\xff\x00", size=300)
@example(stream=b"\x1f", size=300)
@example(stream=b"\x00\x01\xe0", size=300)
@example(stream=b"\x03abcd\x00e\x20\x03", size=8)
@example(stream=b"\x03abcd\x00e\x20\x03", size=7)
@example(stream=b"\x03abcd\x00e\x20\x04", size=300)
def test_no_stream_writes_outside(stream: bytes, size: int) -> None:
    room = np.full(size + 64, 0xAB, np.uint8)
    written = int(decompress(np.frombuffer(stream, np.uint8), room[32 : 32 + size]))
    assert written <= size or written == 2**63
    assert (room[:32] == 0xAB).all()
    assert (room[32 + size :] == 0xAB).all()


@pytest.mark.parametrize(("back", "number"), [(4, b"ebcd"), (3, b"ecde"), (1, b"eeee")])
def test_a_new_byte_before_three_old_ones(back: int, number: bytes) -> None:
    room = np.zeros(8, np.uint8)
    stream = b"\x03abcd\x00e\x20" + bytes([back - 1])
    assert decompress(np.frombuffer(stream, np.uint8), room) == 8
    assert room.tobytes() == b"abcd" + number


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("X/data", data=np.ones(4000, np.float32), chunks=(1000,), compression="lzf")
        chunk = file["X/data"].id.get_chunk_info(2)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(content)
    with h5py.File(path) as file:
        array = CompleteArray(file["X/data"])
        assert (array[0:2000] == 1).all()
        for _ in range(2):
            with pytest.raises(ValueError, match="chunk 2 of /X/data does not decompress"):
                array[1500:2500]


def test_a_chunk_that_is_not_stored_is_an_error_and_never_zeros(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (3000,), "f4", chunks=(1000,), compression="lzf")[:1000] = 1
    with h5py.File(tmp_path / "a.h5") as file:
        assert (LzfArray(file["data"]).read(0, 1500) == [1] * 1000 + [0] * 500).all()
        with pytest.raises(ValueError, match="chunk 1 of /data is missing"):
            CompleteArray(file["data"])[500:1500]


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compression": "lzf", "shuffle": True},
        {"compression": "lzf", "fletcher32": True},
        {},
        {"compression": "lzf", "dtype": ">f4"},
    ],
    ids=["gzip", "shuffle", "checksum", "plain", "big-endian"],
)
def test_other_filters_are_left_to_hdf5(tmp_path: Path, options: dict[str, object]) -> None:
    values = np.arange(5000, dtype=str(options.pop("dtype", "<f4")))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(900,), **options)
        assert not is_lzf(file["x"])
        np.testing.assert_array_equal(CompleteArray(file["x"])[800:4200], values[800:4200])
