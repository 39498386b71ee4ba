"""What an unfinished embedding keeps beside its output, so that it can be killed anywhere and goes on.

``.NAME.partial/begun-KEY`` holds ``request.json`` (what it was begun for), the rows so far (``rows``, or ``output``
where the format takes rows at any place), and ``parts/NUMBER.json`` for every part whose rows are on the disk. Whatever
has such a file is never computed again; whatever lacks one is computed again as a whole, to the same numbers. What is
begun anew gets another KEY, so that a worker whose leader was killed writes where nobody looks.
"""

from __future__ import annotations

import json
import os
import re
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest.work_folder import write_json
from cellfoundry_data.store.replace import clear, locked_folder, remove, sync
from cellfoundry_serving.atomic import put_in_place
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.outputs.dispatch import ANY_ORDER

SUMS_STATE = "sums.json"
REQUEST = "request.json"
_PART = re.compile(r"(\d+)\.json")


class WorkFolder:
    """The folder, locked by the process that leads the embedding.

    Attributes:
        path: where it is.
        inside: the folder in it of the embedding at hand.
        out: the output.
        suffix: of the output, lower case.
    """

    def __init__(self, path: Path, out: Path) -> None:
        self.path, self.out = path, out
        self.suffix = out.suffix.lower()
        begun = (each for each in sorted(path.glob("begun-*")) if (each / REQUEST).exists())
        self._go_into(next(begun, self._new()))

    def _new(self) -> Path:
        return self.path / f"begun-{uuid.uuid4().hex[:12]}"

    def _go_into(self, inside: Path) -> None:
        self.inside = inside
        self.parts = inside / "parts"
        self.output = inside / "output"
        self.rows = self.output if self.suffix in ANY_ORDER else inside / "rows.npy"
        self._request, self._ready = inside / REQUEST, inside / "ready.json"

    @property
    def request(self) -> dict[str, Any] | None:
        """What the embedding was begun for; None where none was. ServingError where that cannot be read."""
        return self.read(self._request) if self._request.exists() else None

    def read(self, path: Path) -> Any:
        """A JSON file of this folder; ServingError where it is damaged."""
        try:
            return json.loads(path.read_bytes())
        except ValueError as error:
            raise ServingError(
                f"{path} is damaged, so what is done of {self.out.name} cannot be used; add --fresh to begin anew."
            ) from error

    def lay_out(self) -> None:
        """Make the folders of an embedding."""
        self.parts.mkdir(parents=True, exist_ok=True)

    def begin(self, request: dict[str, Any]) -> None:
        """Commit that all is laid out for ``request``."""
        write_json(self._request, request)

    def clear(self) -> None:
        """Forget everything, the request first."""
        self._request.unlink(missing_ok=True)
        clear(self.path)
        self._go_into(self._new())

    def commit(self, part: int, facts: dict[str, Any]) -> None:
        """Say that the rows of ``part`` are on the disk; ``facts`` are kept with it."""
        write_json(self.parts / f"{part:06d}.json", facts)

    def committed(self) -> dict[int, dict[str, Any]]:
        """Facts of every part that is on the disk, ascending."""
        if not self.parts.is_dir():
            return {}
        found = [(_PART.fullmatch(path.name), path) for path in sorted(self.parts.iterdir())]
        return {int(match[1]): self.read(path) for match, path in found if match}

    def facts_of(self, part: int) -> dict[str, Any]:
        """Facts of a part that is on the disk."""
        return dict(self.read(self.parts / f"{part:06d}.json"))

    def sums_of(self, part: int) -> Path:
        """Where a worker leaves the sums of a part, for means."""
        return self.parts / f"{part:06d}.npy"

    def forget(self, parts: Iterable[int]) -> None:
        """Remove what workers have left of parts that are kept elsewhere by now."""
        for part in parts:
            (self.parts / f"{part:06d}.json").unlink(missing_ok=True)
            self.sums_of(part).unlink(missing_ok=True)

    @property
    def has_progress(self) -> bool:
        """Whether some part need not be computed again."""
        return bool(self.committed()) or (self.inside / SUMS_STATE).exists()

    def publish(self) -> None:
        """Put the finished ``output`` in its place; ``is_published`` tells after a kill whether that is done."""
        write_json(self._ready, {"output": self.output.stat().st_ino})
        self.finish_publishing()

    @property
    def is_finished(self) -> bool:
        """Whether all is computed and written, published or not."""
        return self._is_ready(self.output) or self.is_published

    @property
    def is_published(self) -> bool:
        """Whether the output is in its place; where a folder was replaced, ``output`` names the older one then."""
        return self._is_ready(self.out)

    @property
    def is_taken_away(self) -> bool:
        """Whether the finished output was published and is not in its place any more."""
        return self._ready.exists() and not self.is_finished

    def _is_ready(self, path: Path) -> bool:
        """Whether ``path`` is the finished output."""
        if not (self._ready.exists() and self._request.exists() and path.exists()):
            return False
        return bool(path.stat().st_ino == self.read(self._ready)["output"])

    def finish_publishing(self) -> None:
        """Rename the output unless that is done."""
        if not self.is_published:
            put_in_place(self.output, self.out, self.inside / "replaced")
            sync(self.out.parent)

    def remove(self) -> None:
        """Remove everything."""
        self.clear()
        remove(self.path)


@contextmanager
def work_folder(out: Path) -> Iterator[WorkFolder]:
    """The locked folder for ``out``, with what an earlier embedding left in it.

    Raises:
        ServingError: another process is writing this output.
    """
    out = out.absolute()
    path = out.parent / f".{out.name}.partial"
    try:
        lock = locked_folder(path, f"Another process is writing {out}: wait for it, or give another --out.")
    except DataError as error:
        raise ServingError(str(error)) from error
    try:
        yield WorkFolder(path, out)
    finally:
        os.close(lock)


@contextmanager
def leaving_what_is_done(work: WorkFolder, *, resumable: bool) -> Iterator[None]:
    """Where the block fails, say how to go on; remove the folder where nothing is done or nothing could go on."""
    try:
        yield
    except BaseException:
        if not work.is_finished and not (resumable and work.has_progress):
            work.remove()
        else:
            warnings.warn(
                f"what is done of {work.out.name} stays in {work.path}: the same command goes on from there, and "
                "--fresh discards it.",
                UserWarning,
                stacklevel=4,
            )
        raise
