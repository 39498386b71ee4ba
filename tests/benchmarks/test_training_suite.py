"""Parts of the suite `train` at small sizes: sides that are compared compute the same, and rows add up."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from cellfoundry_bench.training import one_process, ranks, whole_run
from cellfoundry_bench.training.padded import PaddedModel
from cellfoundry_bench.training.plain_engine import PlainEngine
from cellfoundry_kernels import dispatch
from cellfoundry_training.batches import CellTensors

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def work() -> one_process.Work:
    return one_process.work_for("tiny", cells=3, device=CPU, precision="fp32", batches=2)


def test_rates_and_phases_of_a_step(work: one_process.Work) -> None:
    rows = {row.what: row for row in one_process.step_rows(work, steps=1)}
    assert "real cells" in rows["training step, cells"].note
    phases = sum(row.value or 0 for name, row in rows.items() if name.startswith("step: "))
    assert rows["training step, cells"].value == pytest.approx(3000 / phases, rel=0.2)
    assert rows["training step, MFU"].value > 0
    assert rows["peak memory, distance from the plan"].met == "not measured"


def test_the_padded_twin_takes_the_same_steps(
    work: one_process.Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "")
    model = work.model()
    sides = (one_process.Stepper(work, PaddedModel(model)), one_process.Stepper(work, model))
    cells = [CellTensors.of(batch, CPU) for batch in work.batches]
    padded, packed = ([side.take(iter([batch])) for batch in cells] for side in sides)
    for one, other in zip(padded, packed, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)
    assert one_process.padded_row(work, rounds=1).ratio is not None


def test_bf16_weights_follow_float32_masters() -> None:
    """Updates smaller than half a unit of bf16 would be lost without masters."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    engine = PlainEngine(model, torch.bfloat16)
    for _ in range(100):  # 1e-4 each, and bf16 has steps of 2^-8 below 1
        model.weight.grad = torch.ones_like(model.weight)
        engine.step()
        assert engine.was_step_applied()
    assert model.weight.dtype == torch.bfloat16
    assert model.weight.item() == pytest.approx(0.99, abs=2**-8)


def test_what_the_plan_says_of_the_step_is_in_bytes(work: one_process.Work) -> None:
    """tiny has 0.7 M parameters, 16 bytes each with their Adam moments; activations come on top."""
    planned = one_process.planned_bytes(work)
    parameters = sum(parameter.numel() for parameter in work.model().parameters())
    assert planned > 16 * parameters
    assert planned < 1e9


def test_both_engines_take_the_same_steps() -> None:
    sides = ranks.compare_engines("tiny", cells=1, steps=2, rounds=1)
    assert sides.losses["zero2"] == pytest.approx(sides.losses["ddp"], rel=1e-4)
    assert all(spent > 0 for seconds in sides.seconds.values() for spent in seconds)


def test_a_run_reports_its_phases(ray_local: None) -> None:
    rows = {
        row.what: row for row in whole_run.run_rows("tiny", 1, whole_run.WARM_STEPS + 2, ["batch_cells=1"])
    }
    assert 0 < rows["pretraining run, data wait"].value < 1
    assert rows["run: backward"].value > rows["run: mask"].value > 0


def test_the_step_is_measured_where_only_torch_and_numpy_are() -> None:
    code = (
        "import sys; import cellfoundry_bench.suites.train; "
        "print(sorted({'ray', 'deepspeed', 'pydantic', 'pandas', 'anndata', 'scipy', 'zarr'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
