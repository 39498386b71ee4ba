"""The obs of many sources as Arrow columns of one schema."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cellfoundry_data.qc import CellQuality
from cellfoundry_data.store.format import OBS_CELL_NAME, OBS_SOURCE, OBS_SOURCE_ROW

IDENTITY_COLUMNS = pa.schema(
    [(OBS_SOURCE, pa.string()), (OBS_SOURCE_ROW, pa.int64()), (OBS_CELL_NAME, pa.string())]
)
QUALITY_COLUMNS = pa.schema(
    [("n_genes", pa.int32()), ("total_counts", pa.float64()), ("mito_share", pa.float32())]
)
DUPLICATE = pa.field("duplicate", pa.bool_())
OWN_COLUMNS = pa.schema([*IDENTITY_COLUMNS, *QUALITY_COLUMNS, DUPLICATE])
"""Columns that the store adds; a source's own column of such a name gets trailing underscores."""

_OBJECTS_OF_ONE_TYPE = {"string", "boolean", "integer", "floating", "datetime", "datetime64", "empty"}
"""What ``pandas.api.types.infer_dtype`` calls a column of objects that is no mixture."""


def source_schema(obs: pd.DataFrame) -> pa.Schema:
    """Columns of a source's obs as the store names and types them, after the identity columns."""
    types = [_arrow_column(obs.iloc[:, position]).type for position in range(obs.shape[1])]
    return pa.schema([*IDENTITY_COLUMNS, *zip(_column_names(obs), types, strict=True)])


def source_obs(
    name: str, obs: pd.DataFrame, *, first_row: int = 0, schema: pa.Schema | None = None
) -> pa.Table:
    """Rows of a source's obs, (cells,): the identity columns, then the source's, text as plain strings.

    A slash in a column's name, which AnnData cannot hold, becomes an underscore.

    Args:
        name: of the source.
        obs: some rows of it.
        first_row: where in the source they begin.
        schema: ``source_schema`` of the whole obs, so that a part looks the same whatever its other rows hold;
            None where ``obs`` is the whole.
    """
    rows = np.arange(first_row, first_row + len(obs), dtype=np.int64)
    columns: dict[str, pa.Array] = {
        OBS_SOURCE: pa.array(np.full(len(obs), name, object), pa.string()),
        OBS_SOURCE_ROW: pa.array(rows),
        OBS_CELL_NAME: pa.array(obs.index.astype(str), pa.string()),
    }
    for position, column_name in enumerate(_column_names(obs)):
        kind = schema.field(column_name).type if schema else None
        columns[column_name] = _arrow_column(obs.iloc[:, position], kind)
    return pa.table(columns)


def quality_columns(quality: CellQuality) -> pa.Table:
    """The measured numbers as ``QUALITY_COLUMNS``, (cells,)."""
    return pa.table(
        {field.name: pa.array(getattr(quality, field.name), field.type) for field in QUALITY_COLUMNS}
    )


def with_own_columns(obs: pa.Table, own: pa.Table) -> pa.Table:
    """``obs`` and the store's ``own`` columns beside it, (cells,), in the order of a store: its own, then the sources'.

    ``obs`` may hold some of the store's columns already.
    """
    columns = dict(zip(obs.column_names, obs.columns, strict=True)) | dict(
        zip(own.column_names, own.columns, strict=True)
    )
    first = [name for name in OWN_COLUMNS.names if name in columns]
    return pa.table({name: columns[name] for name in [*first, *columns]})


def common_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """One schema for all sources: numbers widen to the larger type, what does not fit together becomes text."""
    fields = {field.name: field.type for field in IDENTITY_COLUMNS}
    for schema in schemas:
        for field in schema:
            known = fields.get(field.name, field.type)
            try:
                both = [pa.schema([(field.name, known)]), pa.schema([field])]
                fields[field.name] = pa.unify_schemas(both, promote_options="permissive").field(0).type
            except pa.ArrowTypeError:
                fields[field.name] = pa.string()
    return pa.schema(
        [(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in fields.items()]
    )


def conform(obs: pa.Table, schema: pa.Schema) -> pa.Table:
    """``obs`` with the columns of ``schema``; null where a source lacks one."""
    return pa.table(
        {
            field.name: obs[field.name].cast(field.type)
            if field.name in obs.column_names
            else pa.nulls(len(obs), field.type)
            for field in schema
        },
        schema=schema,
    )


def dictionary_encoded(obs: pa.Table) -> pa.Table:
    """Text columns by value and number, as the store keeps them; cell names, each its own, stay as they are."""
    for position, field in enumerate(obs.schema):
        if pa.types.is_string(field.type) and field.name != OBS_CELL_NAME:
            obs = obs.set_column(position, field.name, obs[field.name].dictionary_encode())
    return obs


def _column_names(obs: pd.DataFrame) -> list[str]:
    """What the store calls a source's columns."""
    names: list[str] = []
    for label in obs.columns:
        name = str(label).replace("/", "_")
        while name in names or name in OWN_COLUMNS.names:
            name += "_"
        names.append(name)
    return names


def _arrow_column(column: pd.Series, kind: pa.DataType | None = None) -> pa.Array:
    """The column as Arrow of type ``kind``, by default the one that its values suggest."""
    # Arrow takes an object column's type from its first values and then bends or refuses the others.
    if column.dtype == object and pd.api.types.infer_dtype(column, skipna=True) not in _OBJECTS_OF_ONE_TYPE:
        return _as_text(column)
    try:
        values = pa.array(column, from_pandas=True)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_timestamp(
            values.type
        ):  # one resolution, because a late day has no number of nanoseconds
            values = values.cast(pa.timestamp("us", values.type.tz), safe=values.type.unit != "ns")
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return _as_text(column)
    if pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
        values = values.cast(pa.string())
    is_text = pa.types.is_string(values.type)
    if not is_text and (kind == pa.string() or not (_is_kept(values.type) and _fits_double(values))):
        return _as_text(column)
    return values if kind is None else values.cast(kind)


def _as_text(column: pd.Series) -> pa.Array:
    return pa.array(
        [
            None if pd.api.types.is_scalar(value) and pd.isna(value) else str(value)
            for value in column.astype(object)
        ],
        pa.string(),
    )


def _fits_double(values: pa.Array) -> bool:
    """Whether the values stay what they are when another source's column makes this one floating point.

    Integers beyond 2^53 are labels, not measurements; text keeps every digit of them.
    """
    if not pa.types.is_integer(values.type):
        return True
    smallest, largest = pc.min_max(values).as_py().values()
    return smallest is None or (smallest >= -(2**53) and largest <= 2**53)


def _is_kept(kind: pa.DataType) -> bool:
    """Types that widen and are written as they are; all others become text."""
    tests = (
        pa.types.is_string,
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_timestamp,
        pa.types.is_null,
    )
    return any(test(kind) for test in tests)
