"""No output may take the place of a source, nor be one of the sources the next time."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from anndata import AnnData

from cellfoundry_data.readers.location import has_wildcard
from cellfoundry_data.store_cells import is_single, listed_sources
from cellfoundry_data.urls import is_url
from cellfoundry_serving.encode import Source
from cellfoundry_serving.errors import ServingError


def check_source_is_kept(source: Source, out: Path, *, adds_to_it: bool) -> None:
    """Raises ServingError where ``out`` is a source, holds one, or lies where sources are looked for.

    Args:
        source: as ``absolute_source`` gives it.
        out: the output.
        adds_to_it: an output at a source's place keeps all of it; that is so where the source is that one file.
    """
    if isinstance(source, AnnData):
        return
    named = [source] if isinstance(source, str | Path) else source
    resolved = out.resolve()
    for each in map(str, named):
        if not is_url(each):
            _check_outside(each, out, resolved)
    for path in (Path(each) for each in listed_sources(source) if not is_url(each)):
        if out.exists() and out.samefile(path) and not (adds_to_it and is_single(source)):
            raise ServingError(f"{out} is the source itself and would be overwritten; give another name.")
        if resolved in path.resolve().parents:
            raise ServingError(
                f"The source {path} lies in {out} and would be overwritten; give another name."
            )


def _check_outside(named: str, out: Path, resolved: Path) -> None:
    path = Path(named)
    if path.is_dir() and path.resolve() in resolved.parents:
        raise ServingError(f"{out} lies in the source {named}; give a name outside of it.")
    if has_wildcard(named) and _is_matched(resolved, path):
        raise ServingError(
            f"{out} would be one of the sources {named} the next time; give a name that the pattern does not match."
        )


def _is_matched(path: Path, pattern: Path) -> bool:
    """Whether the pattern names ``path``, there or not, or a folder that it lies in."""
    first = next(at for at, part in enumerate(pattern.parts) if glob.has_magic(part))
    wanted = (*Path(*pattern.parts[:first]).resolve().parts, *pattern.parts[first:])
    return any(_match(path.parts[:length], wanted) for length in range(1, len(path.parts) + 1))


def _match(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_match(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _match(parts[1:], pattern[1:])
