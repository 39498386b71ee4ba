"""What an append has to respect of the store that it adds to."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest.obs_columns import DUPLICATE, QUALITY_COLUMNS
from cellfoundry_data.ingest.plan import ReadOptions, SourcePlan, public_path
from cellfoundry_data.store.format import INDEX, Profile, obs_file
from cellfoundry_data.store.reader import Frame, read_frame
from cellfoundry_data.store.replace import remove_unlisted


def store_to_append_to(store: Path, sources: Sequence[str], options: ReadOptions, profile: Profile) -> Frame:
    """The store at ``store``, after it turned out to fit; what a killed append moved into it is removed."""
    if not store.exists():
        raise DataError(f"there is no store {store} to append to: leave --append out to make it.")
    base = read_frame(store)
    theirs = base.manifest
    for field, have, want in [
        ("vocabulary", theirs["vocabulary"]["hash"], options.vocabulary.hash),
        ("values", theirs["values"], options.values),
        ("profile", theirs["profile"], profile),
        ("seed", theirs["seed"], options.seed),
        *((name, theirs["qc"].get(name), limit) for name, limit in options.limits.model_dump().items()),
    ]:
        if have != want:
            raise DataError(
                f"cells cannot be appended to {store}: its {field} is {have} and theirs is {want}; give the same, or "
                "ingest them into a store of their own."
            )
    taken = {source["path"] for source in theirs["sources"]}
    for source in sources:
        if public_path(source) in taken:
            raise DataError(
                f"{source} is in the store {store} already: leave it out, or its cells would be repeated."
            )
    index = base.index
    listed = {entry.path for entry in base.entries}
    listed |= {entry.path for shard in range(len(index.names)) for entry in index.entry(shard).files}
    remove_unlisted(store, listed)
    return base


def generation(base: Frame | None) -> int:
    """Number of this ingest into its store: 0 for a new one, then one more with each append."""
    return sum(entry.path.startswith(f"{INDEX}/") for entry in base.entries) if base else 0


def stores_schema(store: Path, base: Frame, plans: Sequence[SourcePlan]) -> pa.Schema:
    """The obs columns of the store, which the new cells get; a UserWarning names others, which are left out.

    Raises:
        DataError: a column whose values the store's type does not hold.
    """
    stored = pq.read_schema(store / obs_file(base.index.names[0]))
    measured = {*QUALITY_COLUMNS.names, DUPLICATE.name}
    schema = pa.schema(
        [
            (field.name, field.type.value_type if pa.types.is_dictionary(field.type) else field.type)
            for field in stored
            if field.name not in measured
        ]
    )
    left_out: set[str] = set()
    for plan in plans:
        for field in plan.schema:
            if field.name not in schema.names:
                left_out.add(field.name)
            elif not _holds(schema.field(field.name).type, field.type):
                raise DataError(
                    f"{plan.path}: its obs column {field.name} is {field.type} and that of the store {store} is "
                    f"{schema.field(field.name).type}: rename the column, or ingest into a store of its own."
                )
    if left_out:
        warnings.warn(
            f"obs columns that {store.name} does not have were left out: {', '.join(sorted(left_out))}.",
            UserWarning,
            stacklevel=4,
        )
    return schema


def _holds(store: pa.DataType, new: pa.DataType) -> bool:
    if pa.types.is_string(store):
        return True
    try:
        both = [pa.schema([("column", store)]), pa.schema([("column", new)])]
        return bool(pa.unify_schemas(both, promote_options="permissive").field(0).type == store)
    except pa.ArrowTypeError:
        return False


def take_frame(store: Path, base: Frame, folder: Path) -> None:
    """Files that an append does not change, as the store has them: another Zarr may write others."""
    for entry in base.entries:
        if (folder / entry.path).is_file():
            shutil.copyfile(store / entry.path, folder / entry.path)
