"""What the data suite's parts share: settings, the atlas, stores, processes, and rows of failures."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cellfoundry_bench.atlas.cache import cache_folder, cached, short_hash
from cellfoundry_bench.atlas.cells import Atlas
from cellfoundry_bench.atlas.settings import Settings
from cellfoundry_bench.peers.driven import Driven
from cellfoundry_bench.peers.environments import NotMeasured, Peer
from cellfoundry_bench.results import Row

PROFILES = ("compact", "fast")
SYNTHETIC = "synthetic"


@dataclass
class Bench:
    """One run of the data suite.

    Attributes:
        settings: its size.
        atlas: the synthetic cells.
        folder: for stores of this run; removed at its end.
        sources: .h5ad files by name; ``synthetic`` is the atlas, the others are real.
        reasons: why a store (name, profile) could not be made.
    """

    settings: Settings
    atlas: Atlas
    folder: Path
    sources: dict[str, list[str]]
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)

    def store(self, name: str = SYNTHETIC, profile: str = "compact") -> Path:
        """A store that ``make_stores`` has made; NotMeasured if it could not."""
        if (name, profile) in self.reasons:
            raise NotMeasured(self.reasons[name, profile])
        return self.store_folder(name, profile)

    def store_folder(self, name: str, profile: str) -> Path:
        """Where that store lies, or would."""
        return self.folder / f"{name}-{profile}"

    def manifest(self, name: str = SYNTHETIC, profile: str = "compact") -> dict[str, Any]:
        """What that store says of itself."""
        manifest: dict[str, Any] = json.loads((self.store(name, profile) / "manifest.json").read_text())
        return manifest

    def make_stores(self) -> None:
        """Ingest every source in both profiles, as far as it is not there; one Ray serves all of it."""
        with self.ours() as ours:
            ours.do("keep_ray")
            for name, files in self.sources.items():
                for profile in PROFILES:
                    out = self.store_folder(name, profile)
                    if out.exists():
                        continue
                    try:
                        ours.do("prepare", sources=files, out=str(out), profile=profile)
                    except NotMeasured as reason:
                        self.reasons[name, profile] = str(reason)

    def ours(self) -> Driven:
        """A process of CellFoundry."""
        return Driven.ours(_log("cellfoundry"))

    def peer(self, peer: Peer) -> Driven:
        """A process of ``peer``; NotMeasured if it was left out or cannot be had."""
        if peer not in self.settings.peers:
            raise NotMeasured(f"{peer.name} was left out of this run")
        return Driven.peer(peer, _log(peer.key))

    def converted(self, peer: Peer, files: Sequence[str], **settings: Any) -> Path:
        """``files`` in ``peer``'s form, from the cache; converted first if it is not there."""
        sizes = [Path(file).stat().st_size for file in files]
        key = short_hash(peer.driver.read_text(), peer.name, settings, files, sizes)

        def convert(folder: Path) -> None:
            with self.peer(peer) as process:
                process.do("prepare", sources=list(files), out=str(folder / "data"), **settings)

        return cached(f"{peer.key}-{key}", convert) / "data"


@contextmanager
def bench(settings: Settings, atlas: Atlas) -> Iterator[Bench]:
    """A run whose stores are removed at the end."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=cache_folder()) as folder:
        sources = {SYNTHETIC: atlas.files} | {path.stem: [str(path)] for path in _real_files(settings)}
        yield Bench(settings, atlas, Path(folder), sources)


def rows_or_reason(make: Callable[[], list[Row]], *unmeasured: Row) -> list[Row]:
    """The rows of ``make``, or ``unmeasured`` with the reason as their note."""
    try:
        return make()
    except NotMeasured as reason:
        return [replace(row, note=str(reason)) for row in unmeasured]


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _real_files(settings: Settings) -> list[Path]:
    """The .h5ad files of the folder of real cells, or the bundled donor."""
    if settings.real is not None:
        return sorted(settings.real.glob("*.h5ad"))
    from cellfoundry_data.bundled import baron_h5ad

    donor = cache_folder() / "baron_pancreas_h1.h5ad"
    return [donor if donor.exists() else baron_h5ad(donor)]


def _log(name: str) -> Path:
    logs = cache_folder() / "logs"
    logs.mkdir(exist_ok=True)
    return logs / f"{name}.log"
