"""Where the served models come from: an engine that is open already, a model's folder, or a folder of its versions."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError

DEFAULT_NAME = "cellfoundry"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Version:
    """One version that a source offers; ``mark`` changes when its files do."""

    number: int
    folder: Path | None
    mark: str


class ModelSource(ABC):
    """One model by name, in one version or several.

    Attributes:
        name: of the model.
    """

    name: str

    @abstractmethod
    def versions(self) -> list[Version]:
        """What should be served now, the oldest first; ServingError where there is nothing."""

    @abstractmethod
    def open(self, version: Version) -> Engine:
        """An engine of that version; ServingError or ModelError where it cannot be opened."""


class OpenedSource(ModelSource):
    """An engine that its owner has opened; it never changes."""

    def __init__(self, engine: Engine, name: str = DEFAULT_NAME) -> None:
        self.name = name
        self._engine = engine

    def versions(self) -> list[Version]:
        """The one there is."""
        return [Version(1, None, "")]

    def open(self, version: Version) -> Engine:
        """The engine itself."""
        return self._engine


class FolderSource(ModelSource):
    """A model directory or export, or a folder of them with numbers as names: 1, 2, ...

    A folder without numbers is version 1; whenever its files have changed it is the next one.

    Args:
        name: of the model.
        folder: see above.
        open_engine: opens one directory.
        keep: how many of the newest numbers are served.
    """

    def __init__(self, name: str, folder: Path, open_engine: Callable[[Path], Engine], keep: int = 1) -> None:
        if NAME.fullmatch(name) is None:
            raise ServingError(
                f"Model name {name[:64]!r}: use up to 64 letters, digits, dots, dashes and underscores."
            )
        self.name = name
        self._folder = folder
        self._open_engine = open_engine
        self._keep = keep
        self._number = 0
        self._mark = ""

    def versions(self) -> list[Version]:
        """The newest numbers, or the folder itself."""
        if not self._folder.is_dir():
            raise ServingError(
                f"{self._folder}: no such model directory; give a folder made by `model import` or training."
            )
        numbered = {
            int(entry.name): entry
            for entry in self._folder.iterdir()
            if entry.is_dir() and VERSION.fullmatch(entry.name)
        }
        if numbered:
            newest = sorted(numbered)[-self._keep :]
            return [Version(number, numbered[number], mark_of(numbered[number])) for number in newest]
        mark = mark_of(self._folder)
        if mark != self._mark:
            self._number, self._mark = self._number + 1, mark
        return [Version(self._number, self._folder, mark)]

    def open(self, version: Version) -> Engine:
        """An engine on the version's folder."""
        assert version.folder is not None
        return self._open_engine(version.folder)


def mark_of(folder: Path) -> str:
    """A digest of names, sizes and times of a folder's files: reading the weights themselves would take seconds."""
    files = sorted(
        (entry.name, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        for entry in folder.iterdir()
        if entry.is_file()
        for stat in [entry.stat()]
    )
    return hashlib.sha256(repr(files).encode()).hexdigest()


def named_folder(text: str) -> tuple[str, Path]:
    """``NAME=DIR``, or ``DIR`` under the default name."""
    name, equals, folder = text.partition("=")
    return (name, Path(folder)) if equals and NAME.fullmatch(name) else (DEFAULT_NAME, Path(text))
