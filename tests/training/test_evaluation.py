"""Evaluation on held-out cells: sums that equal the plain formulas, whatever the number of ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cellfoundry_data.batch import CellBatch
from cellfoundry_kernels import MaskedCells
from cellfoundry_training.config import PretrainConfig, load_config
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.evaluation import Heldout, Turn, evaluate, turns
from cellfoundry_training.gene_means import gene_sums
from cellfoundry_training.heldout_sums import MIN_OBSERVATIONS, HeldoutSums
from cellfoundry_training.objective import EVALUATION_STEP, mask_batch
from cellfoundry_training.probe import LabelledCells, labelled_cells, linear_probe
from cellfoundry_training.splits import first_cells

GENES = 40
CPU = torch.device("cpu")
SMALL = [
    "model.encoder_width=16",
    "model.encoder_heads=2",
    "model.encoder_ffn_width=32",
    "model.decoder_width=16",
    "model.decoder_ffn_width=32",
    "batch_cells=4",
    "validation_share=0.3",
    "probe_column=kind",
]
RandomCells = Callable[..., CellBatch]


@pytest.fixture(scope="module")
def config() -> PretrainConfig:
    return load_config("tiny", SMALL)


def masked_cells(batch: CellBatch, config: PretrainConfig) -> MaskedCells:
    return mask_batch(batch, config, n_genes=GENES, step=EVALUATION_STEP, device=CPU)


@pytest.fixture
def deep_and_shallow(random_cells: RandomCells) -> CellBatch:
    """300 cells with totals from about 60 to 20,000, a fifth of the genes never seen in them."""
    cells = random_cells(300, genes=GENES - 8, density=0.5)
    factor = np.repeat(np.tile([1, 25, 60, 130, 300], 60), np.diff(cells.indptr))
    return CellBatch(cells.indptr, cells.gene_ids, cells.counts * factor.astype(np.float32), cells.row_ids)


def test_losses_bins_and_correlations_are_those_of_the_plain_formulas(
    deep_and_shallow: CellBatch, config: PretrainConfig
) -> None:
    masked = masked_cells(deep_and_shallow, config)
    draw = torch.Generator().manual_seed(0)
    target_X, cell_X, gene_X = masked.target_X, masked.mask_cell_index_X, masked.mask_position_X
    model_X = target_X + torch.randn(len(target_X), generator=draw) * (1 + gene_X / 10)
    mean_X, plain_X = torch.full_like(target_X, 1.5), torch.zeros_like(target_X)
    sums = HeldoutSums(GENES, CPU)
    sums.add(masked, deep_and_shallow.totals(), model_X, mean_X, plain_X)

    expected = [float((guess.double() - target_X).square().mean()) for guess in (model_X, mean_X, plain_X)]
    assert sums.losses() == pytest.approx(expected)
    assert sums.cells == 300

    totals, target = deep_and_shallow.totals(), target_X.numpy()
    depth_token, source_token = (
        masked.value_N[masked.cu_seqlens[1:].long() - back].numpy() for back in (2, 1)
    )
    thinned = source_token < depth_token
    assert 0.3 < thinned[totals >= 1000].mean() < 0.7
    limits = {"under 1k": (0, 1e3), "1k-2k": (1e3, 2e3), "2k-5k": (2e3, 5e3), "5k-10k": (5e3, 1e4)}
    bins = sums.by_depth()
    assert {entry.depth for entry in bins} == {*limits, "over 10k"}
    assert not any(entry.thinned for entry in bins if entry.depth == "under 1k")
    for entry in bins:
        low, high = limits.get(entry.depth, (1e4, np.inf))
        cells = (totals >= low) & (totals < high) & (thinned == entry.thinned)
        inside = cells[cell_X.numpy()]
        assert (entry.cells, entry.positions) == (cells.sum(), inside.sum())
        assert entry.loss == pytest.approx(np.square((model_X.numpy() - target)[inside]).mean(), rel=1e-5)
        assert entry.gene_mean_loss == pytest.approx(np.square(1.5 - target[inside]).mean(), rel=1e-5)

    correlations = []
    for gene in range(GENES):
        at = gene_X.numpy() == gene
        if at.sum() >= MIN_OBSERVATIONS and target[at].std() > 0:
            correlations.append(np.corrcoef(model_X.numpy()[at], target[at])[0, 1])
    pearson = sums.pearson()
    assert pearson.genes == len(correlations) == GENES - 8
    assert pearson.mean == pytest.approx(np.mean(correlations), abs=1e-6)
    assert pearson.median == pytest.approx(np.median(correlations), abs=1e-6)


def heldout_of(
    predict: Callable[[MaskedCells], torch.Tensor], batch: CellBatch, config: PretrainConfig
) -> Heldout:
    sums = gene_sums([batch], config, GENES)
    return evaluate(predict, [Turn(batch, True)], lambda cells: masked_cells(cells, config), sums, CPU)


def test_what_is_not_a_number_is_null_in_the_log(deep_and_shallow: CellBatch, config: PretrainConfig) -> None:
    broken = heldout_of(lambda masked: masked.target_X * torch.nan, deep_and_shallow, config).record()
    assert (broken["heldout_loss"], broken["pearson_mean"], broken["pearson_genes"]) == (None, None, 0)
    assert broken["gene_mean_loss"] > 0
    assert {entry["loss"] for entry in broken["by_depth"]} == {None}
    assert json.loads(json.dumps(broken, allow_nan=False)) == broken
    # A constant prediction correlates with nothing, and one of three cells is too few observations.
    constant = heldout_of(lambda masked: torch.ones_like(masked.target_X), deep_and_shallow, config)
    few = heldout_of(lambda masked: masked.target_X, deep_and_shallow.select(np.arange(3)), config)
    assert constant.pearson.median is few.pearson.median is None
    assert few.loss == 0.0


def test_perfect_predictions_correlate_perfectly(deep_and_shallow: CellBatch, config: PretrainConfig) -> None:
    heldout = heldout_of(lambda masked: 3 * masked.target_X + 1, deep_and_shallow, config)
    assert heldout.pearson.mean == pytest.approx(1.0)


def test_nothing_to_evaluate_is_said(random_cells: RandomCells, config: PretrainConfig) -> None:
    with pytest.raises(TrainingError, match="no held-out cell to evaluate on"):
        evaluate(
            lambda masked: masked.target_X,
            [],
            lambda cells: masked_cells(cells, config),
            gene_sums([random_cells(2)], config, GENES),
            CPU,
        )


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_turns_count_every_batch_once_and_keep_ranks_in_step(random_cells: RandomCells, ranks: int) -> None:
    """With partitioned weights a rank that has one turn less would leave the others waiting for ever."""
    batches = [random_cells(4, seed=number) for number in range(8)]
    by_rank = [list(turns(batches, rank, ranks)) for rank in range(ranks)]
    assert len({len(own) for own in by_rank}) == 1
    counted = [id(turn.batch) for round_ in zip(*by_rank, strict=True) for turn in round_ if turn.counts]
    assert counted == [id(batch) for batch in batches]


@pytest.mark.parametrize("limit", [None, 1, 4, 11, 1000])
def test_the_first_cells_are_as_many_as_asked_for(random_cells: RandomCells, limit: int | None) -> None:
    batches = [random_cells(4, seed=number) for number in range(3)]
    rows = [(number, row) for number in range(3) for row in batches[number].row_ids]
    taken = list(first_cells(batches, limit))
    found = [(number, row) for number, batch in enumerate(taken) for row in batch.row_ids]
    assert found == rows[:limit]


def blobs(cells: int, seed: int = 0) -> LabelledCells:
    """Three labels, well apart in three of six directions."""
    rng = np.random.default_rng(seed)
    label_C = rng.integers(0, 3, cells)
    embedding_CD = rng.normal(size=(cells, 6)).astype(np.float32)
    embedding_CD[np.arange(cells), label_C] += 12.0
    return LabelledCells(embedding_CD, np.array(["a", "b", "c"])[label_C], rng.permutation(cells))


def test_probe_tells_separate_labels_and_no_others_apart() -> None:
    cells = blobs(300)
    probe = linear_probe(cells)
    assert probe is not None
    assert (probe.accuracy, probe.macro_f1, probe.cells, probe.labels) == (1.0, 1.0, 300, 3)
    shuffled = np.random.default_rng(1).permutation(cells.label_C)
    chance = linear_probe(LabelledCells(cells.embedding_CD, shuffled, cells.row_C))
    assert chance is not None
    assert chance.accuracy < 0.5


def test_probe_does_not_depend_on_the_order_of_cells() -> None:
    cells = blobs(120)
    noisy = cells.embedding_CD + np.random.default_rng(2).normal(size=(120, 6)).astype(np.float32) * 8
    order = np.random.default_rng(3).permutation(120)
    first = linear_probe(LabelledCells(noisy, cells.label_C, cells.row_C))
    second = linear_probe(LabelledCells(noisy[order], cells.label_C[order], cells.row_C[order]))
    assert first == second
    assert first is not None
    assert 0.3 < first.accuracy < 1.0


def test_rare_labels_and_cells_without_an_embedding_stay_out() -> None:
    cells = blobs(100)
    label_C = cells.label_C.copy()
    label_C[:9] = "rare"
    cells.embedding_CD[99] = np.nan
    probe = linear_probe(LabelledCells(cells.embedding_CD, label_C, cells.row_C))
    assert probe is not None
    assert (probe.cells, probe.labels) == (90, 3)
    assert linear_probe(LabelledCells(cells.embedding_CD, np.full(100, "one"), cells.row_C)) is None
    nothing = np.full_like(cells.embedding_CD, np.nan)
    assert linear_probe(LabelledCells(nothing, label_C, cells.row_C)) is None


def test_labelled_cells_are_the_first_that_have_a_label(random_cells: RandomCells) -> None:
    labels: list[npt.NDArray[Any]] = [
        np.array(["a", None, "b"], object),
        np.array([None, None, None], object),
        np.array(["c", "d", "e"], object),
    ]
    batches = []
    for number, column in enumerate(labels):
        cells = random_cells(3, seed=number)
        batches.append(
            CellBatch(
                cells.indptr, cells.gene_ids, cells.counts, cells.row_ids + 10 * number, {"kind": column}
            )
        )
    found = labelled_cells(lambda cells: cells.totals()[:, None].astype(np.float32), batches, "kind", 4)
    assert found.label_C.tolist() == ["a", "b", "c", "d"]
    assert found.row_C.tolist() == [0, 2, 20, 21]
    expected = [batches[0].totals()[0], batches[0].totals()[2], *batches[2].totals()[:2]]
    assert found.embedding_CD[:, 0].tolist() == expected
    none = labelled_cells(lambda cells: np.ones((len(cells), 1), np.float32), batches[1:2], "kind", 4)
    assert linear_probe(none) is None


def test_two_ranks_find_what_one_finds(store: Path, tmp_path: Path) -> None:
    """Each rank in a process of its own, beside one that is alone."""
    # Masked often, so that genes have enough observations for a correlation.
    config = load_config("tiny", [*SMALL, "eval_cells=34", "value_mask_prob=0.9", "zero_mask_prob=0.9"])
    program = Path(__file__).parent / "programs" / "evaluating.py"
    command = [sys.executable, str(program), str(store), config.model_dump_json(), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=80, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, *two = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0_of_1", "0_of_2", "1_of_2")
    )
    assert two[0] == two[1]
    assert one["heldout_cells"] == 34
    assert one["pearson_genes"] > 0
    assert len(one["rows"]) == 40
    bins = one.pop("by_depth"), two[0].pop("by_depth")
    assert two[0] == {key: pytest.approx(value, rel=1e-9) for key, value in one.items()}
    assert len(bins[0]) == len(bins[1]) > 0
    for alone, together in zip(*bins, strict=True):
        numbers = {key: value for key, value in alone.items() if isinstance(value, float)}
        assert together == alone | {key: pytest.approx(value, rel=1e-9) for key, value in numbers.items()}
