"""Plans of a run: arithmetic against the running model, and played failures against Daly's expectation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cellfoundry.cli.main import app
from cellfoundry_model.flops import training_flops
from cellfoundry_training.batches import CellTensors
from cellfoundry_training.config import load_config
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.objective import Masking
from cellfoundry_training.plan.accelerators import ACCELERATORS, accelerator
from cellfoundry_training.plan.estimate import Plan, plan_run
from cellfoundry_training.plan.failures import Faults, best_interval, expected_seconds, play, young_interval
from cellfoundry_training.plan.workload import average_workload, lognormal_lengths


def planned(**changes: float | str) -> Plan:
    changes = {"batch_tokens": "null", "batch_cells": 8} | changes
    overrides = [f"{name}={value}" for name, value in changes.items()]
    config = load_config("100m", overrides)
    return plan_run(config, [1300], 19_264, cells=1e6, gpus=8, chip=accelerator("h100"), mfu=0.4)


def test_work_of_a_cell_follows_the_masking_rates() -> None:
    config = load_config("tiny")
    work = average_workload(config, [1000], 19_264)
    zeros = 19_264 - 1000
    assert work.tokens == pytest.approx(1000 * (1 - 0.3 * 0.8) + zeros * 0.03 * 0.1 + 2, abs=1)
    assert work.asked == pytest.approx(300 + 0.03 * zeros)
    assert work.entered == pytest.approx(work.tokens + 0.8 * work.asked)
    assert work.rows == 19_266


def test_a_sampled_decoder_takes_less_of_everything() -> None:
    full = load_config("100m", ["batch_tokens=null", "batch_cells=8"])
    sampled = full.model_copy(update={"decoder_context": "sampled", "context_rate": 0.05})
    work = average_workload(sampled, [1000], 19_264)
    # Tokens, mask tokens, the tenth of the chosen zeros that keep their value, and a twentieth of the rest.
    anyway = work.tokens + 0.8 * work.asked + 0.1 * 0.03 * (19_264 - 1000)
    assert work.rows == work.entered == pytest.approx(anyway + 0.05 * (19_266 - anyway))
    assert average_workload(full, [1000], 19_264).flops > 3 * work.flops
    everything = full.model_copy(update={"decoder_context": "sampled", "context_rate": 1.0})
    assert average_workload(everything, [1000], 19_264).flops == pytest.approx(
        average_workload(full, [1000], 19_264).flops, rel=0.02
    )
    plans = [
        plan_run(config, [1300], 19_264, cells=1e6, gpus=8, chip=accelerator("h100"), mfu=0.4)
        for config in (full, sampled)
    ]
    assert plans[0].memory.activations > 3.5 * plans[1].memory.activations
    assert plans[0].largest_micro_batch * 3 < plans[1].largest_micro_batch


@pytest.mark.parametrize("context", ["full", "sampled"])
def test_the_planned_work_is_that_of_real_masks(context: str) -> None:
    """Of 32 random cells that are not thinned: 1,000 of 19,264 genes each."""
    config = load_config("100m", [f"decoder_context={context}", "read_depth_aware=false"])
    rng = np.random.default_rng(0)
    gene_ids = np.concatenate([np.sort(rng.permutation(19_264)[:1000]) for _ in range(32)]).astype(np.int32)
    cells = CellTensors(
        torch.arange(33) * 1000, torch.from_numpy(gene_ids), torch.ones(32_000), torch.arange(32)
    )
    masking = Masking.of(config, 19_264)
    masked = masking.mask(cells, 1)
    flops = training_flops(config.architecture(19_264), masked, masking.sample(masked, cells.cell_ids, 1))
    planned = average_workload(config, [1000] * 32, 19_264).flops
    assert flops / 32 == pytest.approx(planned, rel=0.01)


def test_lengths_without_a_store_have_the_mean_and_spread_asked_for() -> None:
    lengths = np.array(lognormal_lengths(1300, 0.5, 19_264))
    assert lengths.mean() == pytest.approx(1300, rel=0.01)
    assert lengths.std() / lengths.mean() == pytest.approx(0.5, rel=0.05)


def test_zero_stages_share_out_what_their_names_say() -> None:
    memory = [planned(zero_stage=stage).memory for stage in range(4)]
    parameters = 119_252_285
    assert [m.weights for m in memory] == [2 * parameters] * 3 + [2 * parameters / 8]
    assert [m.gradients for m in memory] == [2 * parameters] * 2 + [2 * parameters / 8] * 2
    assert [m.optimizer for m in memory] == [16 * parameters] + [2 * parameters] * 3


def test_the_largest_micro_batch_fits_and_one_more_does_not() -> None:
    largest = planned().largest_micro_batch
    assert planned(batch_cells=largest).fits
    assert not planned(batch_cells=largest + 1).fits


@pytest.mark.parametrize("preset", ["tiny", "3m", "10m", "100m", "300m"])
def test_presets_fit_80_gb(preset: str) -> None:
    config, lengths = load_config(preset), lognormal_lengths(1300, 0.5, 19_264)
    plan = plan_run(config, lengths, 19_264, cells=1e6, gpus=8, chip=accelerator("h100"), mfu=0.4)
    assert plan.fits


def test_time_is_flops_over_what_the_devices_reach() -> None:
    plan = planned()
    assert plan.seconds == pytest.approx(plan.flops / (8 * ACCELERATORS["h100"].bf16_flops * 0.4))
    assert plan.cells == plan.steps * plan.cells_per_step
    assert plan.gpu_hours == pytest.approx(plan.seconds * 8 / 3600)


@settings(max_examples=20, deadline=None)
@given(
    between=st.floats(600, 1e6),
    save=st.floats(0, 120),
    restart=st.floats(0, 600),
    interval=st.floats(0.05, 1.5),
    seed=st.integers(0, 2**32 - 1),
)
def test_played_runs_take_as_long_as_expected(
    between: float, save: float, restart: float, interval: float, seed: int
) -> None:
    """The mean of 4,000 plays lies within 6 of its standard errors (two in a thousand million by chance)."""
    faults = Faults(between, save, restart)
    played = play(20 * interval * between, interval * between, faults, 4000, np.random.default_rng(seed))
    expected = expected_seconds(20 * interval * between, interval * between, faults)
    # Wall times are sums of many independent parts; 5 to 95 % of a normal are 3.29 deviations.
    error = (played.high - played.low) / 3.29 / math.sqrt(4000)
    assert abs(played.mean - expected) < 6 * error + 1e-9 * expected


def test_the_chosen_interval_is_near_young_s_where_failures_are_rare() -> None:
    faults = Faults(between=40_000, save=20, restart=300)
    best, played = best_interval(2e6, 1.0, faults)
    assert young_interval(faults) / 2 < best.interval < young_interval(faults) * 2
    assert best.mean == min(one.mean for one in played)


def test_no_interval_is_shorter_than_a_checkpoint_takes_to_be_written() -> None:
    best, played = best_interval(2e6, 7.0, Faults(between=40_000, save=0.01, restart=300, write=100))
    assert best.interval == min(one.interval for one in played) == 105


def test_a_cluster_that_never_gets_through_a_step_is_refused() -> None:
    with pytest.raises(TrainingError, match="leaves no time for a step"):
        best_interval(1e5, 10.0, Faults(between=20, save=60, restart=300))


def plan_command(*arguments: str) -> str:
    common = ["train", "plan", "--config", "100m", "--cells", "50e6", "--gpus", "64", "--gpu", "h200"]
    result = CliRunner().invoke(app, [*common, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_says_what_fits_and_what_it_assumed() -> None:
    assert "does NOT fit" in plan_command("--set", "batch_tokens=1000000")
    text = plan_command("--price", "3")
    assert "a device, fits (at most" in text
    assert "119.3 M parameters" in text
    assert "at 3 a device-hour" in text
    assert "MFU 40% (yours: bench run train)" in text


def test_the_command_s_json_has_the_simulation() -> None:
    result = json.loads(plan_command("--json", "--simulate", "--mfu", "0.5"))
    assert result["plan"]["cells"] == pytest.approx(50e6, rel=0.01)
    assert result["mfu"] == 0.5
    assert result["simulation"]["best"] in result["simulation"]["played"]
    size = 12 * result["plan"]["parameters"]
    assert result["simulation"]["faults"]["save"] == pytest.approx(size / 64 / 10e9)
    assert result["simulation"]["faults"]["write"] == pytest.approx(size / 1e9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpu": "h20"}, "no GPU 'h20' is known"),
        ({"cells": "0"}, "cells is 0.0"),
        ({"mfu": "2"}, "mfu is 2.0"),
    ],
)
def test_a_wrong_number_is_one_sentence(change: dict[str, str], words: str) -> None:
    given = {"config": "100m", "cells": "1e6", "gpus": "8", "gpu": "h100"} | change
    arguments = [word for name, value in given.items() for word in (f"--{name}", value)]
    with pytest.raises(TrainingError, match=words):
        CliRunner().invoke(app, ["train", "plan", *arguments], catch_exceptions=False)
