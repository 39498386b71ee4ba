"""How large the data suite is and what it may use; environment variables, since every suite shares one command."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cellfoundry_bench.errors import BenchError
from cellfoundry_bench.peers.environments import PEERS, Peer

CELLS_VARIABLE = "CELLFOUNDRY_BENCH_CELLS"
PEERS_VARIABLE = "CELLFOUNDRY_BENCH_PEERS"
REAL_VARIABLE = "CELLFOUNDRY_BENCH_REAL"


@dataclass(frozen=True)
class Settings:
    """The data suite's size.

    Attributes:
        cells: synthetic cells.
        peers: loaders to compare with; the rows of others say that they were left out.
        real: folder of real .h5ad files of raw counts; None is the bundled donor alone.
        rounds: turns of an alternating comparison.
        conversions: turns of the comparison of ingest with a peer's conversion, which takes minutes each.
        repeats: how many times larger the stores are on which a reader's memory is measured.
    """

    cells: int = 200_000
    peers: tuple[Peer, ...] = PEERS
    real: Path | None = None
    rounds: int = 5
    conversions: int = 3
    repeats: tuple[int, ...] = (10, 250, 5000)

    @classmethod
    def from_environment(cls) -> Settings:
        """From the variables above; unset ones keep the defaults.

        Raises:
            BenchError: a variable that makes no sense.
        """
        cells = os.environ.get(CELLS_VARIABLE, str(cls.cells))
        if not cells.isdigit() or not 1000 <= int(cells) <= 10_000_000:
            raise BenchError(f"{CELLS_VARIABLE} is {cells!r}; give a number of cells from 1000 to 10000000")
        real = os.environ.get(REAL_VARIABLE)
        if real and not Path(real).is_dir():
            raise BenchError(
                f"{REAL_VARIABLE} is {real!r}, which is no folder; give one that holds .h5ad files"
            )
        return cls(int(cells), _peers(os.environ.get(PEERS_VARIABLE, "all")), Path(real) if real else None)


def _peers(names: str) -> tuple[Peer, ...]:
    """``all``, ``none`` or keys joined with commas."""
    known = {peer.key: peer for peer in PEERS}
    chosen = {"all": list(known), "none": []}.get(names, names.split(","))
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise BenchError(
            f"{PEERS_VARIABLE} names {unknown[0]!r}; give all, none or some of {', '.join(known)}"
        )
    return tuple(known[name] for name in chosen)
