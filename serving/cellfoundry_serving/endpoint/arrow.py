"""Cells and embeddings as Arrow IPC streams.

In: a row a cell, a list column ``genes`` (names) or ``gene_ids`` (positions), and a list column ``counts``.
Out: a column ``embedding``, a fixed-size list of float32.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.aside import joined_bytes
from cellfoundry_serving.endpoint.cells import cells_from_tensors, check_cells
from cellfoundry_serving.endpoint.errors import RequestError

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
VERSION_HEADER = "Model-Version"
"""Of an answer: which version of the model computed it; V2 has a field for that."""
COLUMNS = "The columns are 'counts' (lists of numbers) and 'genes' (lists of names) or 'gene_ids' (lists of integers)."

UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""What pyarrow raises for damaged streams."""


def cells_from_arrow(body: bytes, index: dict[str, int], max_cells: int) -> CellBatch:
    """Reads a stream and checks it; genes outside the vocabulary are dropped.

    RequestError where it is damaged, compressed, has nulls, or a cell's genes are all unknown.
    """
    try:
        table = read_stream(body, max_cells)
        counts, lengths = flat_lists(table, "counts")
        is_named = "genes" in table.column_names
        genes, gene_lengths = flat_lists(table, "genes" if is_named else "gene_ids")
        if not np.array_equal(lengths, gene_lengths):
            raise RequestError("The lists of genes and counts of a cell must have the same length.")
        positions = (
            named_positions(genes, index)
            if is_named
            else genes.cast(pa.int64()).to_numpy(zero_copy_only=False)
        )
        with np.errstate(over="ignore"):  # becomes infinite, which no cell may hold
            numbers = counts.cast(pa.float64(), safe=False).to_numpy().astype(np.float32)
    except RequestError:
        raise
    except UNREADABLE as error:
        raise RequestError("The body is no Arrow IPC stream that can be read.") from error
    if is_named:
        positions, numbers, lengths = known_genes(positions, numbers, lengths)
    elif len(positions) and (positions.min() < 0 or positions.max() >= len(index)):
        raise RequestError(f"gene_ids must lie between 0 and {len(index) - 1}.")
    tensors = {
        "indptr": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "gene_ids": positions.astype(np.int32),
        "counts": numbers,
    }
    return cells_from_tensors(tensors, len(index), max_cells)


def read_stream(body: bytes, max_cells: int) -> pa.Table:
    """All rows of a stream whose memory is that of ``body``: nothing in it may be compressed or shared."""
    reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(body))
    first = next(reader, None)
    if first is None or first.type != "schema":  # pyarrow 26 crashes on a message of another type
        raise RequestError("The body is no Arrow IPC stream that can be read.")
    schema = pa.ipc.read_schema(first)
    check_schema(schema)
    batches: list[pa.RecordBatch] = []
    cells = 0
    for message in reader:
        if message.type != "record batch" or is_compressed(message):
            raise RequestError("Send an Arrow stream without dictionaries and without compression.")
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate(full=True)
        cells += batch.num_rows
        if cells > max_cells:
            check_cells(cells, max_cells)
        batches.append(batch)
    check_cells(cells, max_cells)
    return pa.Table.from_batches(batches, schema)


def check_schema(schema: pa.Schema) -> None:
    """RequestError unless the columns are those that a request has."""
    if len(schema.names) != 2 or set(schema.names) not in ({"genes", "counts"}, {"gene_ids", "counts"}):
        raise RequestError(COLUMNS)
    for field in schema:
        if not (pa.types.is_list(field.type) or pa.types.is_large_list(field.type)):
            raise RequestError(COLUMNS)
        item = field.type.value_type
        fits = {
            "genes": pa.types.is_string(item) or pa.types.is_large_string(item),
            "gene_ids": pa.types.is_integer(item),
            "counts": pa.types.is_integer(item) or pa.types.is_float32(item) or pa.types.is_float64(item),
        }
        if not fits[field.name]:
            raise RequestError(COLUMNS)


def is_compressed(message: pa.ipc.Message) -> bool:
    """Whether a record batch's buffers are compressed, which pyarrow does not tell before it unpacks them.

    The message is a flatbuffer that pyarrow has verified: table Message has ``header`` as its field 2, table
    RecordBatch has ``compression`` as its field 3 (format/Message.fbs of Arrow).
    """
    data = memoryview(message.metadata)
    root = struct.unpack_from("<I", data, 0)[0]
    header = field_place(data, root, 2)
    batch = header + struct.unpack_from("<I", data, header)[0]
    return field_place(data, batch, 3) != 0


def field_place(data: memoryview, table: int, field: int) -> int:
    """Where a field of a flatbuffer's table lies; 0 where it is absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    entry = 4 + 2 * field
    if entry >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", data, vtable + entry)[0]
    return table + offset if offset else 0


def flat_lists(table: pa.Table, name: str) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Values of all lists of a column one after another, and the lists' lengths (cells,)."""
    column = table[name].combine_chunks()
    values = column.flatten()
    if column.null_count or values.null_count:
        raise RequestError(f"Column {name!r} must not have nulls.")
    return values, pc.list_value_length(column).cast(pa.int64()).to_numpy()


def named_positions(names: pa.Array, index: dict[str, int]) -> npt.NDArray[np.int64]:
    """Position of each name in the vocabulary, -1 for none; each distinct name is looked up once."""
    encoded = names.dictionary_encode()
    positions = np.array([index.get(name, -1) for name in encoded.dictionary.to_pylist()], dtype=np.int64)
    return positions[encoded.indices.to_numpy()]


def known_genes(
    positions: npt.NDArray[np.int64], counts: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The same without unknown genes (-1); RequestError where that leaves a cell without any."""
    known = positions >= 0
    cell = np.repeat(np.arange(len(lengths)), lengths)
    kept = np.bincount(cell[known], minlength=len(lengths))
    foreign = np.flatnonzero((kept == 0) & (lengths > 0))
    if len(foreign):
        raise RequestError(
            f"Cell {foreign[0]}: none of its {lengths[foreign[0]]} genes is in the model's vocabulary."
        )
    return positions[known], counts[known], kept


def arrow_embedding(embedding: npt.NDArray[np.float32]) -> bytes:
    """A stream with one row a cell; a cell without counts has NaN."""
    rows = pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), embedding.shape[1])
    table = pa.table({"embedding": rows})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return joined_bytes([memoryview(sink.getvalue())])
