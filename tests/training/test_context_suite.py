"""The benchmark suite of the sampled decoder on a small store: what it runs, and what its rows and plot say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cellfoundry_bench.errors import BenchError
from cellfoundry_bench.suites import context
from cellfoundry_kernels import MaskedCells
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.decoder_context import DecoderContext


def test_runs_train_on_samples_and_are_judged_by_the_full_decoder(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(context.STORE_VARIABLE, str(store))
    for name, value in {"SHAPE": "tiny", "RATES": (0.05, 0.5), "FLOPS_CELLS": 32, "SEEDS": (0,)}.items():
        monkeypatch.setattr(context, name, value)
    monkeypatch.setattr(context, "LEARNER", ("max_seconds=null", "max_steps=6", "batch_cells=4"))
    calls: list[tuple[bool, bool]] = []
    forward = CellModel.forward

    def recorded(model: CellModel, masked: MaskedCells, sample: DecoderContext | None = None) -> Tensor:
        calls.append((torch.is_grad_enabled(), sample is not None))
        return forward(model, masked, sample)

    monkeypatch.setattr(CellModel, "forward", recorded)
    result = context.run()
    assert not any(has_sample for has_gradients, has_sample in calls if not has_gradients)
    # Six steps and two timed ones of the full decoder, and of each rate.
    assert sum(has_sample for _, has_sample in calls) == 2 * sum(
        has_gradients and not has_sample for has_gradients, has_sample in calls
    )
    rows = {row.what: row for row in result.rows}
    assert len(rows) == 2 + 2 + 3
    work = [row.ratio for row in result.rows if "FLOPs" in row.what]
    assert work[0] > work[1] > 1
    error = rows["held-out masked MSE trained at rate 0.05, over that of full"]
    assert error.bar == 1.01
    assert error.value == pytest.approx(1.0, abs=0.2)
    assert error.value != 1.0, "the sample made no difference"
    assert rows["held-out masked MSE trained at rate 0.5, over that of full"].bar is None
    (plot,) = result.curves
    assert [[rate for rate, _ in line] for line in plot.lines.values()] == [[0.05, 0.5]] * 2


def test_a_store_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(context.STORE_VARIABLE, "/nowhere")
    with pytest.raises(
        BenchError, match="CELLFOUNDRY_BENCH_STORE is '/nowhere'; set it to the folder of a store"
    ):
        context.run()
