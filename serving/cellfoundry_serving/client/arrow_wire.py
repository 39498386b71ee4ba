"""Cells and embeddings as Arrow IPC streams: genes by name, which the endpoint looks up itself."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
import numpy as np
import pyarrow as pa

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.client.call import Call
from cellfoundry_serving.client.rows import Asked, Rows, of_cells
from cellfoundry_serving.endpoint.arrow import MEDIA_TYPE, VERSION_HEADER


def embed_call(cells: CellBatch, genes: Sequence[str] | None, asked: Asked) -> Call[Rows]:
    """Embeddings of ``cells`` over ``genes``; None is the model's vocabulary, whose positions are sent then."""
    content = cells_stream(cells, genes)
    return Call(
        "POST",
        "/v1/embed",
        lambda response: of_cells(read_rows(response), len(cells)),
        params=asked.conventions | asked.choice,
        headers={"Content-Type": MEDIA_TYPE, "Accept": MEDIA_TYPE},
        content=content,
    )


def cells_stream(cells: CellBatch, genes: Sequence[str] | None) -> bytes:
    """A row a cell: lists ``counts`` and ``genes``, or ``gene_ids`` without names."""
    offsets = pa.array(cells.indptr, pa.int32())
    ids = pa.array(cells.gene_ids, pa.int32())
    name, values = ("gene_ids", ids) if genes is None else ("genes", pa.array(genes, pa.string()).take(ids))
    columns = {name: values, "counts": pa.array(cells.counts, pa.float32())}
    table = pa.table({name: pa.ListArray.from_arrays(offsets, column) for name, column in columns.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def read_rows(response: httpx.Response) -> Rows:
    """The column ``embedding`` of an answer."""
    table = pa.ipc.open_stream(response.content).read_all()
    table.validate(full=True)
    rows = table["embedding"].combine_chunks()
    numbers = rows.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return Rows(numbers.reshape(len(rows), rows.type.list_size), response.headers[VERSION_HEADER])
