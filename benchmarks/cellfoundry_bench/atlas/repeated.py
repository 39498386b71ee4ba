"""A store that lists the same shards many times under other names: what size does to a reader, without the disk."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from cellfoundry_data.store import open_store
from cellfoundry_data.store.format import INDEX, SHARDS, obs_file
from cellfoundry_data.store.writer import finish_store, start_store


def repeat_store(store: Path, times: int, out: Path) -> Path:
    """Write a store of ``times`` the cells of ``store`` at ``out`` (new), whose shards are symbolic links.

    A reader cannot tell it from one whose cells are all different: its index and the paths it opens are those of that
    size.
    """
    source = open_store(store)
    rows = [row for path in sorted((store / INDEX).iterdir()) for row in pq.read_table(path).to_pylist()]
    out.mkdir()
    start_store(out, source.vocabulary)
    shards = []
    for copy in range(times):
        for row in rows:
            name = f"{copy:04d}-{row['name']}"
            files = [file | {"path": _renamed(file["path"], row["name"], name)} for file in row["files"]]
            for path, linked in (
                (f"{SHARDS}/{row['name']}", f"{SHARDS}/{name}"),
                (obs_file(row["name"]), obs_file(name)),
            ):
                (out / linked).symlink_to((store / path).resolve())
            shards.append(row | {"name": name, "files": files})
    kept = {name: source.manifest[name] for name in ("seed", "qc", "sources", "values", "profile")}
    finish_store(out, source.vocabulary, shards, **kept)
    return out


def _renamed(path: str, old: str, new: str) -> str:
    """``shards/OLD/...`` or ``obs/OLD.parquet`` under the new name."""
    folder, _, rest = path.partition("/")
    return f"{folder}/{new}{rest.removeprefix(old)}"
