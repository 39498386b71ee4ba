"""The request of the public scFoundation API: options as one-element BYTES inputs, and a dense table of all genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.tokens import InputType, PreNormalized
from cellfoundry_serving.endpoint.cells import check_cells
from cellfoundry_serving.endpoint.errors import MAX_NAME, RequestError
from cellfoundry_serving.endpoint.pieces import Conventions
from cellfoundry_serving.endpoint.v2 import json_tensor
from cellfoundry_serving.engines.base import POOLS

TABLE = "data_numpy"
MAX_GENE_CELLS = 5  # as the public API; 40 MB of float32 a cell
OPTIONS: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "input_type": ("singlecell", get_args(InputType)),
    "output_type": ("cell", ("cell", "gene", "gene_batch")),
    "pool_type": ("all", POOLS),
    "tgthighres": ("t4", None),
    "pre_normalized": ("F", get_args(PreNormalized)),
    "version": ("0.1", None),  # of the public service's models; here the one that is served answers
}
"""Default and allowed values of each option."""


@dataclass(frozen=True)
class ScFoundationRequest:
    """Cells and conventions; ``totals`` (cells,) for pre-normalized A."""

    cells: CellBatch
    totals: npt.NDArray[np.float64] | None
    conventions: Conventions


def read_request(document: dict[str, Any], n_genes: int, max_cells: int) -> ScFoundationRequest:
    """Reads and checks a request; RequestError says what is wrong with it."""
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not all(isinstance(item, dict) for item in inputs):
        raise RequestError("The request needs a list 'inputs' of objects.")
    named = {str(item.get("name")): item for item in inputs}
    for name in named.keys() - OPTIONS.keys() - {TABLE}:
        raise RequestError(
            f"There is no input {name[:MAX_NAME]!r}; the inputs are {', '.join([*OPTIONS, TABLE])}."
        )
    options = {name: read_option(name, named.get(name)) for name in OPTIONS}
    table = read_table(named.get(TABLE), max_cells)
    totals = None
    if options["pre_normalized"] == "A":
        table, totals = table[:, :-1], table[:, -1].astype(np.float64)
    if table.shape[1] != n_genes:
        more = " and the total count" if totals is not None else ""
        raise RequestError(f"{TABLE} must have {n_genes} columns{more}: the model's genes, in their order.")
    is_cell = options["output_type"] == "cell"
    if not is_cell:
        check_cells(len(table), min(max_cells, MAX_GENE_CELLS))
    rows = sp.csr_matrix(table)
    cells = CellBatch(
        rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data, np.arange(len(table))
    )
    is_bulk_count = (options["input_type"], options["pre_normalized"]) == ("bulk", "F")
    conventions = Conventions(
        pool=options["pool_type"],
        target=options["tgthighres"],
        output="cell" if is_cell else "gene",
        input_type=options["input_type"],
        pre_normalized=options["pre_normalized"],
        bulk_median=median_total(cells) if is_bulk_count else None,
    )
    return ScFoundationRequest(cells, totals, conventions)


def read_option(name: str, item: dict[str, Any] | None) -> Any:
    """The text of a one-element input, or its default."""
    default, allowed = OPTIONS[name]
    if item is None:
        return default
    data = item.get("data")
    value = data[0] if isinstance(data, list) and len(data) == 1 else None
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise RequestError(f"Input {name!r}: 'data' must be a list of one short text.")
    if allowed is not None and value not in allowed:
        raise RequestError(f"Input {name!r} must be one of {', '.join(allowed)}.")
    return value


def read_table(item: dict[str, Any] | None, max_cells: int) -> npt.NDArray[np.float32]:
    """The table (cells, columns): finite values, none negative; its list has one element more around it."""
    shape = item.get("shape") if item else None
    if item is None or not isinstance(shape, list) or len(shape) != 2:
        raise RequestError(
            f"The request needs an input {TABLE!r} with a shape of two sizes: cells and genes."
        )
    if any(type(size) is not int or size < 1 for size in shape):
        raise RequestError(f"Input {TABLE!r}: the shape must be two positive sizes.")
    check_cells(shape[0], max_cells)
    values = json_tensor(item.get("data"), np.dtype(np.float32))
    if values is None or len(values) != shape[0] * shape[1]:
        raise RequestError(f"Input {TABLE!r}: 'data' must be as many numbers as its shape says.")
    if not np.isfinite(values).all() or (values < 0).any():
        raise RequestError(f"Input {TABLE!r}: values must be finite and not negative.")
    return values.reshape(shape)


def median_total(cells: CellBatch) -> float:
    """Median total of the rows that have counts."""
    totals = cells.totals()
    if not (totals > 0).any():
        raise RequestError("No row has counts, so none can be scaled.")
    return float(np.median(totals[totals > 0]))
