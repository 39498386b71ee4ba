"""The suites by name. Listing them imports none of them, so the command line can list in an instant."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellfoundry_bench.errors import BenchError

if TYPE_CHECKING:
    from cellfoundry_bench.results import SuiteResult


@dataclass(frozen=True)
class Suite:
    """A benchmark suite: its name on the command line and what it measures, in one line."""

    name: str
    summary: str

    def load(self) -> Callable[[], SuiteResult]:
        """The suite's ``run`` function; BenchError if a package it needs is not installed."""
        try:
            module = importlib.import_module(f"cellfoundry_bench.suites.{self.name}")
        except ModuleNotFoundError as error:
            raise BenchError(
                f"the suite {self.name} needs the package {error.name}, which is not installed here; "
                "install cellfoundry with its dependencies (the suite kernels needs only torch and numpy)"
            ) from error
        run: Callable[[], SuiteResult] = module.run
        return run


SUITES = (
    Suite(
        "data",
        "ingest, store and loader on a 200,000-cell atlas against annbatch, scDataset, SCDL and TileDB-SOMA-ML",
    ),
    Suite("ingest", "the ingest of that atlas alone, against annbatch's conversion"),
    Suite(
        "kernels",
        "each kernel and the 100m model against the best there is and the roofline; compile report; needs torch only",
    ),
    Suite(
        "train",
        "the training step: rates, MFU and breakdown without Ray, a padded twin, a whole run, ZeRO-2 against plain DDP",
    ),
    Suite(
        "learns",
        "an existing pretraining run on its held-out cells, against gene means and nearest neighbours",
    ),
    Suite(
        "context",
        "the decoder trained on a sample of the zeros against the full one: FLOPs, time and held-out error by rate",
    ),
    Suite("embed", "packed batch embedding against the one-cell-at-a-time float32 loop"),
    Suite("serve", "endpoint on loopback: protocol overhead at 1 client, requests per second at 8"),
)


def list_suites() -> list[Suite]:
    """Every suite, in the order they are worth running."""
    return list(SUITES)


def find_suite(name: str) -> Suite:
    """The suite called ``name``; BenchError naming the known ones otherwise."""
    for suite in SUITES:
        if suite.name == name:
            return suite
    known = ", ".join(suite.name for suite in SUITES)
    raise BenchError(f"there is no benchmark suite {name!r}; the suites are {known}")
