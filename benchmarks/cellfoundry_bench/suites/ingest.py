"""Ingest alone, in turn with annbatch's conversion of the same files: a part of ``data`` that takes minutes.

Size and peers are set by the environment, see ``cellfoundry_bench.atlas.settings``.
"""

from __future__ import annotations

from cellfoundry_bench.atlas.bench import bench, rows_or_reason
from cellfoundry_bench.atlas.cells import synthetic_atlas
from cellfoundry_bench.atlas.conversion import conversion_rows
from cellfoundry_bench.atlas.settings import Settings
from cellfoundry_bench.results import Row, SuiteResult
from cellfoundry_data import vocabulary


def run() -> SuiteResult:
    """Measure at the size that the environment asks for."""
    settings = Settings.from_environment()
    genes = list(vocabulary.load("scfoundation").genes)
    with bench(settings, synthetic_atlas(settings.cells, genes)) as made:
        return SuiteResult(
            rows_or_reason(lambda: conversion_rows(made), Row("ingest", None, "cells/CPU-s", bar=2.0)), []
        )
