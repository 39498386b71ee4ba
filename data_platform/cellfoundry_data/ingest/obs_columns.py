"""The obs of many sources as Arrow columns of one schema."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cellfoundry_data.store.format import OBS_CELL_NAME, OBS_SOURCE, OBS_SOURCE_ROW

OWN_COLUMNS = pa.schema(
    [(OBS_SOURCE, pa.string()), (OBS_SOURCE_ROW, pa.int64()), (OBS_CELL_NAME, pa.string())]
)


def source_obs(name: str, obs: pd.DataFrame) -> pa.Table:
    """A source's obs, (cells,): the store's own columns, then the source's, text as plain strings.

    A column of the source that bears the name of another gets trailing underscores; a slash in a name, which
    AnnData cannot hold, becomes an underscore.
    """
    columns = {
        OBS_SOURCE: pa.array(np.full(len(obs), name, object), pa.string()),
        OBS_SOURCE_ROW: pa.array(np.arange(len(obs), dtype=np.int64)),
        OBS_CELL_NAME: pa.array(obs.index.astype(str), pa.string()),
    }
    for position, label in enumerate(obs.columns):
        column_name = str(label).replace("/", "_")
        while column_name in columns:
            column_name += "_"
        columns[column_name] = _arrow_column(obs.iloc[:, position])
    return pa.table(columns)


def common_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """One schema for all sources: numbers widen to the larger type, what does not fit together becomes text."""
    fields = {field.name: field.type for field in OWN_COLUMNS}
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


def _arrow_column(column: pd.Series) -> pa.Array:
    try:
        values = pa.array(column, from_pandas=True)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        values = None
    if values is not None and _is_kept(values.type) and _fits_double(values):
        return values
    if values is not None and (pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type)):
        return values.cast(pa.string())
    return pa.array([None if pd.isna(value) else str(value) for value in column.astype(object)], pa.string())


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
