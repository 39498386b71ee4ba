"""A Python environment for each peer, made once from its pinned requirements and kept in the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cellfoundry_bench.atlas.cache import cache_folder, short_hash

PYTHONS_VARIABLE = "CELLFOUNDRY_BENCH_PYTHONS"
REQUIREMENTS = Path(__file__).parent / "requirements"
INSTALL_TIMEOUT_S = 1800


class NotMeasured(Exception):
    """Why a figure cannot be had here; becomes the note of its row."""


@dataclass(frozen=True)
class Peer:
    """A loader to compare with: its name in rows, its requirements file and driver, and Pythons it runs on."""

    name: str
    key: str
    pythons: tuple[str, ...]

    @property
    def driver(self) -> Path:
        """The script that drives it."""
        return Path(__file__).parent / "drivers" / f"drive_{self.key}.py"


ANNBATCH = Peer("annbatch 0.3.1 + zarrs", "annbatch", ("3.12", "3.13"))
SCDATASET = Peer("scDataset 0.3.0", "scdataset", ("3.11", "3.12"))
SCDL = Peer("BioNeMo SCDL 0.1.3", "scdl", ("3.11", "3.12"))
SOMA = Peer("TileDB-SOMA-ML 0.1.0", "soma", ("3.11",))
PEERS = (ANNBATCH, SCDATASET, SCDL, SOMA)


def environment(peer: Peer) -> Path:
    """The interpreter of ``peer``'s environment, which is made first if it is not in the cache.

    Raises:
        NotMeasured: no suitable Python here, or its packages cannot be installed.
    """
    python = find_python(peer.pythons)
    requirements = REQUIREMENTS / f"{peer.key}.txt"
    key = short_hash(requirements.read_text(), _version(python))
    folder = cache_folder() / "environments" / f"{peer.key}-{key}"
    interpreter = folder / "bin" / "python"
    # An environment cannot be moved, so it is built in place and a file says that it is complete.
    complete = folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        with (folder.parent / f"{folder.name}.log").open("w") as log:
            _install(python, folder, requirements, log.fileno(), peer)
        complete.touch()
    return interpreter


def _install(python: Path, folder: Path, requirements: Path, log: int, peer: Peer) -> None:
    interpreter = str(folder / "bin" / "python")
    steps = [
        [str(python), "-m", "venv", str(folder)],
        [interpreter, "-m", "pip", "install", "--no-input", "-r", str(requirements)],
    ]
    for step in steps:
        try:
            subprocess.run(step, stdout=log, stderr=log, check=True, timeout=INSTALL_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError) as error:
            raise NotMeasured(
                f"the environment of {peer.name} could not be made; its log lies in the benchmark's cache folder"
            ) from error


def find_python(versions: tuple[str, ...]) -> Path:
    """An interpreter of one of ``versions`` (``3.12``), the earlier the better.

    Looked for in ``CELLFOUNDRY_BENCH_PYTHONS`` (paths joined like PATH), then this interpreter, PATH, and where
    pyenv and uv keep theirs.

    Raises:
        NotMeasured: there is none.
    """
    for version in versions:
        for candidate in _candidates(version):
            if _version(candidate) == version:
                return candidate
    wanted = " or ".join(versions)
    raise NotMeasured(f"needs Python {wanted}, and none was found; name one in {PYTHONS_VARIABLE}")


def _candidates(version: str) -> Iterator[Path]:
    yield from map(Path, filter(None, os.environ.get(PYTHONS_VARIABLE, "").split(os.pathsep)))
    yield Path(sys.executable)
    # Behind a shim of pyenv on PATH there may be no interpreter; the real one is found below.
    found = shutil.which(f"python{version}")
    if found:
        yield Path(found)
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv")
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    for folder, pattern in ((pyenv / "versions", f"{version}.*"), (uv, f"cpython-{version}.*")):
        yield from sorted(folder.glob(f"{pattern}/bin/python{version}"))


def _version(python: Path) -> str | None:
    """``3.12`` for a working interpreter, None for anything else."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
