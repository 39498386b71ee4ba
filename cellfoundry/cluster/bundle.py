"""The folder that travels with a job: this package as a wheel lays it out, and small local inputs.

Ray installs a wheel that it is handed together with all its requirements, torch among them, on every node. So the
wheel travels unpacked: the cluster needs the requirements (an image, an environment), and the job runs this version of
the package whatever version is installed there.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

from cellfoundry.cluster.errors import ClusterError

PACKAGES = (
    "cellfoundry",
    "cellfoundry_kernels",
    "cellfoundry_data",
    "cellfoundry_model",
    "cellfoundry_training",
    "cellfoundry_tasks",
    "cellfoundry_serving",
    "cellfoundry_bench",
)
# Through the head's memory to every node; Ray itself refuses 512 MiB.
MAX_INPUT_BYTES = 100_000_000
INPUTS = "inputs"


class Bundle:
    """A folder under construction: ``add`` says where an input will lie in it, ``write`` fills it."""

    def __init__(self) -> None:
        self._inputs: list[Path] = []
        self._bytes = 0

    def add(self, path: Path) -> str:
        """Let a local file or folder travel; its path in the job.

        Raises:
            ClusterError: it is too large, alone or with the inputs before it; or it holds what cannot be copied (see
                ``_walk``).
        """
        size = sum(file.stat().st_size for file in _walk(path) if file.is_file())
        if self._bytes + size > MAX_INPUT_BYTES:
            with_others = f" and {self._bytes / 1e6:,.0f} MB travel already" if self._bytes else ""
            raise ClusterError(
                f"{path} has {size / 1e6:,.0f} MB{with_others}, more than the {MAX_INPUT_BYTES / 1e6:,.0f} MB of local "
                "inputs that a job takes along: give a URL, or name a folder above it that the cluster sees too with "
                "--shared."
            )
        self._bytes += size
        self._inputs.append(path)
        return f"{INPUTS}/{len(self._inputs) - 1}/{path.resolve().name}"

    def write(self, folder: Path) -> None:
        """Copy package and inputs into ``folder``, an empty one."""
        for name in PACKAGES:
            _copy(_package_folder(name), folder / name)
        _write_metadata(folder)
        for number, path in enumerate(self._inputs):
            target = folder / INPUTS / str(number) / path.resolve().name
            target.parent.mkdir(parents=True)
            _copy(path, target)


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ClusterError(f"the package {name} is not installed completely: install cellfoundry again.")
    return Path(spec.submodule_search_locations[0])


def _write_metadata(folder: Path) -> None:
    """The part of a wheel by which ``importlib.metadata.version`` finds this version before an installed one."""
    distribution = importlib.metadata.distribution("cellfoundry")
    info = folder / f"cellfoundry-{distribution.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(distribution.read_text("METADATA") or "", encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    for path in _walk(source):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
        else:
            shutil.copyfile(path, copy)


def _walk(path: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """A file, or a folder and all in it but ``__pycache__``; links are followed, for the job cannot follow them.

    Args:
        path: to begin at.
        above: real paths of the folders that it was reached through.

    Raises:
        ClusterError: a link that is broken or leads back to a folder it lies in, or what is no ordinary file.
    """
    if not path.is_dir():
        if not path.is_file():
            what = "is a broken link" if path.is_symlink() else "is no ordinary file"
            raise _cannot_travel(path, what)
        yield path
        return
    real = path.resolve()
    if real in above:
        raise _cannot_travel(path, "is a link to a folder that it lies in")
    yield path
    for entry in sorted(path.iterdir()):
        if entry.name != "__pycache__":
            yield from _walk(entry, (*above, real))


def _cannot_travel(path: Path, what: str) -> ClusterError:
    return ClusterError(
        f"{path} {what} and cannot travel with the job: remove it, or name a folder above it that the cluster sees too "
        "with --shared."
    )
