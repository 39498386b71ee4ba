"""Two ranks on a small store, from counts to a model directory, through Ray Train and DeepSpeed."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cellfoundry.report import training_report
from cellfoundry_bench.suites import learns
from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.store.cell_keys import cell_keys
from cellfoundry_data.store.replace import replacing_store
from cellfoundry_data.store.writer import finish_store, start_store, write_shard
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.checkpoint import load_model
from cellfoundry_training import history
from cellfoundry_training.config import load_config
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.files import RunFiles
from cellfoundry_training.launch import as_sentence
from cellfoundry_training.pretrain import PretrainResult, pretrain

from .conftest import RUN_STEPS, STORE_GENES, run_config


def test_a_run_leaves_metrics_and_a_model(undisturbed: PretrainResult) -> None:
    lines = history.read(undisturbed.history)
    steps, evaluations = history.steps(lines), history.evaluations(lines)
    assert [line["step"] for line in steps] == list(range(1, RUN_STEPS + 1))
    assert all(math.isfinite(line["loss"]) and line["cells_per_s"] > 0 for line in steps)
    assert [line["step"] for line in evaluations] == [20, 40]
    assert steps[-1]["cells"] == undisturbed.cells_seen == RUN_STEPS * 2 * 4 * 2
    # 200 x 0.2 held out, by a hash of each cell.
    assert 20 <= evaluations[0]["heldout_cells"] <= 60
    assert undisturbed.heldout_loss == min(line["heldout_loss"] for line in evaluations)
    assert undisturbed.gene_mean_loss < undisturbed.plain_gene_mean_loss
    for line in evaluations:
        bins = line["by_depth"]
        assert sum(entry["cells"] for entry in bins) == line["heldout_cells"]
        total = sum(entry["loss"] * entry["positions"] for entry in bins)
        assert total / sum(entry["positions"] for entry in bins) == pytest.approx(line["heldout_loss"])
        # The two kinds differ in every gene, and a tenth of the cells has no label.
        assert line["probe_accuracy"] == line["probe_macro_f1"] == 1.0
        assert 15 <= line["probe_cells"] < line["heldout_cells"]

    loaded = load_model(undisturbed.model_dir)
    assert len(loaded.vocab_genes) == loaded.config.n_genes == STORE_GENES
    assert loaded.info["heldout_loss"] == undisturbed.heldout_loss
    assert loaded.info["training_cells"] == 200 - evaluations[0]["heldout_cells"]
    assert loaded.info["config_hash"] == run_config().hash()
    assert load_config(undisturbed.history.with_name("config.yaml")) == run_config()


def test_the_report_of_a_run_shows_its_evaluations(undisturbed: PretrainResult, tmp_path: Path) -> None:
    page = training_report.write(undisturbed.history.parent, tmp_path / "report.html").read_text()
    assert f"{undisturbed.heldout_loss:.4f}" in page
    assert page.count("<svg") == 3
    # Namespaces of the drawings are names; nothing is fetched.
    assert not re.search(r"""(?:\bsrc|\bhref)=["']?https?:""", page)


def test_a_report_of_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"has no config\.yaml"):
        training_report.write(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_suite_learns_judges_the_model_on_the_run_s_own_held_out_positions(
    undisturbed: PretrainResult, store: Path
) -> None:
    result = learns.judge(undisturbed.history.parent, store)
    rows = {row.what: row for row in result.rows}
    best = rows["held-out masked MSE, each gene's mean, best constant"]
    assert best.value == pytest.approx(undisturbed.heldout_loss, rel=1e-5)
    assert best.peer_value == pytest.approx(undisturbed.gene_mean_loss, rel=1e-5)
    neighbours = rows["held-out masked MSE, nearest neighbours, stacked"]
    # Two kinds that differ in every gene: neighbours know them, each gene's mean does not.
    assert neighbours.peer_value < best.peer_value
    assert neighbours.ratio == pytest.approx(neighbours.peer_value / neighbours.value)


def test_a_diverging_run_stops_with_one_sentence(ray_local: None, store: Path, tmp_path: Path) -> None:
    config = run_config("learning_rate=1e30", "warmup_steps=0", "clip=1e30", "zero_stage=0")
    sentence = (
        r"3 steps in a row were not finite, the last one step (\d+) \(loss \S+\) with the cells in store rows "
        r"\d+, .*: lower learning_rate \(now 1e\+30\)"
    )
    with pytest.raises(TrainingError, match=sentence):
        pretrain(config, store, tmp_path / "run")
    skipped = [line for line in history.read(tmp_path / "run" / "metrics.jsonl") if "skipped" in line]
    assert [line["skipped_in_a_row"] for line in skipped] == [1, 2, 3]
    assert all(line["cell_rows"] for line in skipped)


def test_an_unforeseen_error_leaves_its_traceback_in_a_file(tmp_path: Path) -> None:
    from ray.train import WorkerGroupError

    files = RunFiles(tmp_path)
    failure = WorkerGroupError("Traceback: rank 1 of 2", {1: RuntimeError("no space left")})
    sentence = str(as_sentence(failure, files))
    assert str(files.failure) in sentence
    assert "--resume" in sentence
    assert "Traceback: rank 1 of 2" in files.failure.read_text()


def test_a_store_too_small_for_the_ranks_is_refused_before_anything_starts(
    store: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="too few for a batch of 500"):
        pretrain(run_config("batch_cells=500"), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_store_of_normalised_values_is_refused(tmp_path: Path) -> None:
    vocabulary, keys = Vocabulary(("GENE0",)), cell_keys(0, np.arange(1))
    cells = CellBatch(np.array([0, 1]), np.zeros(1, np.int32), np.array([0.5], np.float32), np.arange(1))
    with replacing_store(tmp_path / "store") as folder:
        start_store(folder, vocabulary)
        shard = write_shard(folder, "000000", cells, keys, pa.table({"source_row": [0]}), values="float32")
        finish_store(folder, vocabulary, [shard], seed=0, qc={}, sources=[], values="float32")
    with pytest.raises(TrainingError, match="pretraining needs raw counts"):
        pretrain(run_config(), tmp_path / "store", tmp_path / "run")


def test_an_existing_run_is_not_overwritten(undisturbed: PretrainResult, store: Path) -> None:
    run = undisturbed.history.parent
    before = undisturbed.history.read_bytes()
    with pytest.raises(TrainingError, match="--resume"):
        pretrain(run_config(), store, run)
    assert undisturbed.history.read_bytes() == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("workers=3", "their product stays 4"),
        ("gradient_accumulation=1", "their product stays 4"),
        ("learning_rate=0.5", "started with learning_rate"),
        ("eval_cells=5", "started with eval_cells"),
    ],
)
def test_resume_with_other_values_is_refused(
    undisturbed: PretrainResult, store: Path, override: str, words: str
) -> None:
    with pytest.raises(TrainingError, match=words):
        pretrain(run_config(override), store, undisturbed.history.parent, resume=True)


def test_resume_of_nothing_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no config\.yaml to resume from"):
        pretrain(run_config(), store, tmp_path / "never", resume=True)


def test_a_cluster_started_for_the_run_has_no_more_cpus_than_the_machine(store: Path, tmp_path: Path) -> None:
    """The preset 100m asks for 64 workers; on a laptop they must not all start."""
    code = (
        "import os, sys\nfrom cellfoundry_training.config import load_config\n"
        "from cellfoundry_training.pretrain import pretrain\n"
        "pretrain(load_config('tiny', [f'workers={os.cpu_count() + 1}', 'validation_share=0.2']), *sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, str(store), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert f"the cluster has {os.cpu_count()} CPUs: set fewer" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_gpu_run_without_gpus_is_refused(ray_local: None, store: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("the machine has a GPU")
    with pytest.raises(TrainingError, match="the cluster has 0 GPUs: lower workers or choose device=cpu"):
        pretrain(run_config("device=cuda"), store, tmp_path / "run")


def test_more_workers_than_the_cluster_has_is_refused(ray_local: None, store: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the cluster has 2 CPUs"):
        pretrain(run_config("workers=3"), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()
