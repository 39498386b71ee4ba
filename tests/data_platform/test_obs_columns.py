"""obs of many sources as columns of one schema: the same whatever the parts it is read in."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfoundry_data.ingest.obs_columns import (
    OWN_COLUMNS,
    common_schema,
    conform,
    dictionary_encoded,
    quality_columns,
    source_obs,
    source_schema,
    with_own_columns,
)
from cellfoundry_data.qc import CellQuality

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.datetimes(datetime.datetime(1990, 1, 1), datetime.datetime(2100, 1, 1)),
)
one_kind = st.sampled_from(
    [
        st.integers(-(2**62), 2**62),
        st.integers(-100, 100),
        st.floats(allow_nan=True),
        st.booleans(),
        st.none() | st.booleans(),
        st.none() | st.integers(0, 9),
        st.none() | st.text("ab", max_size=2),
        values,
    ]
)


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    rows = draw(st.integers(1, 8))
    columns: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from("abcde"), unique=True, max_size=4)):
        column = pd.Series(draw(st.lists(draw(one_kind), min_size=rows, max_size=rows)), dtype=object)
        if draw(st.booleans()):
            column = column.infer_objects()
        elif draw(st.booleans()):
            column = column.astype(str).astype("category")
        columns[name] = column.to_numpy() if column.dtype == object else column.array
    return pd.DataFrame(columns, index=[f"c{row}" for row in range(rows)])


@settings(deadline=None, max_examples=200)
@given(first=frames(), second=frames(), data=st.data())
def test_parts_of_a_source_look_like_the_whole(
    first: pd.DataFrame, second: pd.DataFrame, data: st.DataObject
) -> None:
    schemas = [source_schema(first), source_schema(second)]
    common = common_schema(schemas)
    for frame, schema in zip([first, second], schemas, strict=True):
        whole = source_obs("a", frame)
        assert whole.schema == schema
        cut = data.draw(st.integers(0, len(frame)))
        parts = [
            source_obs("a", frame.iloc[start:stop], first_row=start, schema=schema)
            for start, stop in ((0, cut), (cut, len(frame)))
        ]
        together = pa.concat_tables([conform(part, common) for part in parts])
        assert repr(together.to_pydict()) == repr(conform(whole, common).to_pydict())


def test_a_column_called_like_one_of_the_stores_keeps_its_values_under_another_name() -> None:
    obs = pd.DataFrame(
        {"n_genes": [5], "duplicate_": ["x"], "duplicate": ["y"], "source": ["lab"]}, index=["c"]
    )
    row = source_obs("a", obs).to_pylist()[0]
    assert row == {
        "source": "a",
        "source_row": 0,
        "cell_name": "c",
        "n_genes_": 5,
        "duplicate_": "x",
        "duplicate__": "y",
        "source_": "lab",
    }


def test_the_stores_own_columns_come_first() -> None:
    quality = CellQuality(
        np.array([7, 8], np.int32), np.array([2.0**40 + 1, 3.0]), np.array([0.25, 0.0], np.float32)
    )
    obs = source_obs("a", pd.DataFrame({"tissue": ["lung", None]}, index=["c0", "c1"]), first_row=10)
    obs = with_own_columns(obs, quality_columns(quality))
    obs = with_own_columns(obs, pa.table({"duplicate": [False, True]}))
    assert obs.column_names == [*OWN_COLUMNS.names, "tissue"]
    assert pa.schema(list(obs.schema)[: len(OWN_COLUMNS)]).equals(OWN_COLUMNS)
    assert obs.to_pylist()[0] == {
        "source": "a",
        "source_row": 10,
        "cell_name": "c0",
        "n_genes": 7,
        "total_counts": 2.0**40 + 1,
        "mito_share": 0.25,
        "duplicate": False,
        "tissue": "lung",
    }


def test_categories_that_differ_between_sources_are_one_column() -> None:
    first = pd.DataFrame({"type": pd.Categorical(["B", "T"], ["T", "B", "unused"])}, index=["0", "1"])
    second = pd.DataFrame({"type": pd.Categorical(["NK", None], ["NK"])}, index=["0", "1"])
    schema = common_schema([source_schema(first), source_schema(second)])
    merged = pa.concat_tables([conform(source_obs("a", frame), schema) for frame in (first, second)])
    encoded = dictionary_encoded(merged)
    assert encoded["type"].to_pylist() == ["B", "T", "NK", None]
    assert encoded.schema.field("type").type == pa.dictionary(pa.int32(), pa.string())
    assert encoded.schema.field("cell_name").type == pa.string()


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pd.array([True, None, False], "boolean"), [True, None, False]),
        (pd.array([1, None, 3], "Int8"), [1, None, 3]),
        (pd.array(["a", None, "b" * 100_000], "string"), ["a", None, "b" * 100_000]),
        ([datetime.date(2020, 1, 2), None, datetime.date(2021, 3, 4)], ["2020-01-02", None, "2021-03-04"]),
        ([[1, 2], None, np.array([3])], ["[1, 2]", None, "[3]"]),
        ([1.5, "x", True], ["1.5", "x", "True"]),
        (np.array([1, 2, 3], np.float16), [1.0, 2.0, 3.0]),
        (pd.to_timedelta([1, 2, 3], "D"), ["1 days 00:00:00", "2 days 00:00:00", "3 days 00:00:00"]),
    ],
)
def test_values_of_unusual_types(column: Any, expected: list[Any]) -> None:
    series = pd.Series(column)
    obs = pd.DataFrame(
        {"x": series.to_numpy() if series.dtype == object else series.array}, index=["0", "1", "2"]
    )
    assert source_obs("a", obs)["x"].to_pylist() == expected
    parts = [
        source_obs("a", obs.iloc[row : row + 1], schema=source_schema(obs))["x"].to_pylist()[0]
        for row in range(3)
    ]
    assert parts == expected


def test_timestamps_of_different_resolution_share_a_column() -> None:
    late = datetime.datetime(2900, 1, 1)
    first = pd.DataFrame({"day": pd.to_datetime(["2020-01-01"]).as_unit("ns")}, index=["0"])
    second = pd.DataFrame({"day": pd.Series([late], dtype="datetime64[us]").array}, index=["0"])
    schema = common_schema([source_schema(first), source_schema(second)])
    merged = [conform(source_obs("a", frame), schema)["day"].to_pylist()[0] for frame in (first, second)]
    assert [str(value) for value in merged] == ["2020-01-01 00:00:00", "2900-01-01 00:00:00"]
