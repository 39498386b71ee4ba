"""From what a user names (files, folders, patterns, URLs) to single sources."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from ..store.format import MANIFEST, SHARDS
from .base import reading
from .formats import ACCEPTED, is_source
from .location import as_location, children, has_wildcard, is_folder, matches, name_of

MAX_DEPTH = 32


def expand_sources(sources: Iterable[str | Path]) -> list[str]:
    """Every source that the arguments name, sorted; a folder that is a source itself (.zarr, 10x, Parquet) is one.

    Stores of CellFoundry among them are passed over: the store is often written beside its sources.

    Args:
        sources: files; folders, searched through; patterns with * ? [ ] and ** ; URLs of either.

    Warns how many other files were skipped in folders and among a pattern's matches.

    Raises:
        DataError: an argument that names no source.
    """
    found: list[str] = []
    skipped: list[str] = []
    for source in map(as_location, sources):
        with reading(source, "a folder or pattern"):
            inside = _inside(source, skipped)
        if not inside:
            store = "is a store and " if source in skipped else ""
            raise DataError(f"{source}: {store}names no source of counts; accepted are {ACCEPTED}.")
        found += inside
    if skipped:
        warnings.warn(
            f"{len(skipped)} files that are no source of counts were skipped ({', '.join(sorted(skipped)[:3])}"
            f"{', ...' if len(skipped) > 3 else ''}).",
            UserWarning,
            stacklevel=2,
        )
    return sorted(found)


def _inside(source: str, skipped: list[str]) -> list[str]:
    if has_wildcard(source):
        return [found for match in matches(source) for found in _sources(match, is_folder(match), skipped)]
    if is_source(source) or not is_folder(source):
        return [source]  # a file that is none is refused by name where it is opened
    return _sources(source, True, skipped)


def _sources(path: str, is_dir: bool, skipped: list[str], depth: int = 0) -> list[str]:
    if is_source(path):
        return [path]
    if not is_dir:
        skipped.append(path)
        return []
    if depth == MAX_DEPTH:
        raise DataError(f"{path}: lies {MAX_DEPTH} folders deep; name the folders of sources themselves.")
    inside = children(path)
    if _holds_store(inside):
        skipped.append(path)
        return []
    return [
        found for child, child_is_dir in inside for found in _sources(child, child_is_dir, skipped, depth + 1)
    ]


def _holds_store(inside: list[tuple[str, bool]]) -> bool:
    """Whether the children of a folder are those of a CellFoundry store."""
    return {(MANIFEST, False), (SHARDS, True)} <= {(name_of(path), is_dir) for path, is_dir in inside}
