"""The objective: a mean over the global batch that does not care how cells are dealt out, and honest baselines."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.architecture import CellModel
from cellfoundry_training.config import PretrainConfig, load_config
from cellfoundry_training.gene_means import GeneSums, chosen_probability, gene_sums
from cellfoundry_training.guarded_adamw import GuardedAdamW
from cellfoundry_training.objective import EVALUATION_STEP, mask_batch, share_of_global_loss
from cellfoundry_training.schedule import learning_rate

GENES = 40
CPU = torch.device("cpu")
SMALL_MODEL = [
    "model.encoder_width=16",
    "model.encoder_heads=2",
    "model.encoder_ffn_width=32",
    "model.decoder_width=16",
    "model.decoder_ffn_width=32",
]
RandomCells = Callable[..., CellBatch]


@pytest.fixture(scope="module")
def config() -> PretrainConfig:
    return load_config("tiny", SMALL_MODEL)


def small_model(config: PretrainConfig) -> CellModel:
    torch.manual_seed(0)
    return CellModel(config.architecture(GENES))


def global_gradient(
    model: CellModel, config: PretrainConfig, parts: list[CellBatch]
) -> tuple[float, torch.Tensor]:
    """Loss and gradient as ranks would make them: each part its own term, then the average over parts."""
    masked = [mask_batch(part, config, n_genes=GENES, step=1, device=CPU) for part in parts]
    positions = sum(cells.target_X.numel() for cells in masked)
    terms = [share_of_global_loss(model(cells), cells.target_X, positions, len(parts)) for cells in masked]
    loss = torch.stack(terms).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


@pytest.mark.parametrize(
    "split", [[8], [4, 4], [2, 2, 2, 2], [5, 3]], ids=lambda split: "-".join(map(str, split))
)
def test_loss_and_gradient_ignore_order_and_partition(
    config: PretrainConfig, random_cells: RandomCells, split: list[int]
) -> None:
    cells, model = random_cells(8), small_model(config)
    expected_loss, expected_gradient = global_gradient(model, config, [cells])
    shuffled = cells.select(np.random.default_rng(0).permutation(8))
    bounds = np.cumsum([0, *split])
    parts = [shuffled.select(np.arange(first, last)) for first, last in itertools.pairwise(bounds)]
    loss, gradient = global_gradient(model, config, parts)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_a_part_without_chosen_positions_adds_nothing() -> None:
    prediction_X = torch.zeros(0, requires_grad=True)
    loss = share_of_global_loss(prediction_X, torch.zeros(0), global_positions=10, micro_batches=2)
    loss.backward()
    assert loss.item() == 0.0


def test_masks_repeat_for_a_step_and_differ_between_steps(
    config: PretrainConfig, random_cells: RandomCells
) -> None:
    cells = random_cells(4)

    def chosen(step: int) -> torch.Tensor:
        return mask_batch(cells, config, n_genes=GENES, step=step, device=CPU).mask_position_X

    assert torch.equal(chosen(EVALUATION_STEP), chosen(EVALUATION_STEP))
    assert not torch.equal(chosen(1), chosen(2))


def test_64_real_cells_are_learned_by_heart(baron_h5ad: Path) -> None:
    """One set of masks over the 48 genes with most counts: about 900 values to remember."""
    sizes = [*("encoder_width=64", "encoder_heads=4", "encoder_ffn_width=128"), "decoder_width=64"]
    settings = [f"model.{size}" for size in [*sizes, "decoder_ffn_width=128"]]
    budget = ["max_seconds=null", "max_steps=300", "learning_rate=3e-3", "min_learning_rate_share=0.02"]
    config = load_config("tiny", [*settings, *budget])
    cells = deepest_genes(baron_h5ad, cells=64, genes=48)
    torch.manual_seed(0)
    model = CellModel(config.architecture(48))
    optimizer = GuardedAdamW(model.parameters(), clip=config.clip, lr=0.0, weight_decay=0.0)
    masked = mask_batch(cells, config, n_genes=48, step=1, device=CPU)
    asked_G = torch.bincount(masked.mask_position_X, minlength=48).clamp(min=1)
    constants = torch.bincount(masked.mask_position_X, masked.target_X, 48) / asked_G
    by_gene_means = (constants[masked.mask_position_X] - masked.target_X).square().mean().item()
    for step in range(1, 301):
        optimizer.param_groups[0]["lr"] = learning_rate(config, step, (step - 1) / 300)
        optimizer.zero_grad()
        loss = share_of_global_loss(model(masked), masked.target_X, masked.target_X.numel(), 1)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 < by_gene_means / 10


def deepest_genes(h5ad: Path, cells: int, genes: int) -> CellBatch:
    """The first cells of a file over its genes with most counts."""
    counts = anndata.read_h5ad(h5ad).X[:cells]
    deepest = np.sort(np.argsort(np.asarray(counts.sum(0)).ravel())[-genes:])
    kept = counts[:, deepest].tocsr()
    kept.sort_indices()
    return CellBatch(
        kept.indptr.astype(np.int64),
        kept.indices.astype(np.int32),
        kept.data.astype(np.float32),
        np.arange(cells),
    )


@pytest.mark.parametrize("read_depth_aware", [False, True])
def test_gene_means_match_what_the_masks_really_ask(
    random_cells: RandomCells, read_depth_aware: bool
) -> None:
    """The closed form against the masks themselves, over many steps."""
    config = load_config("tiny", [f"read_depth_aware={read_depth_aware}"])
    cells = random_cells(2000, density=0.3, seed=1)
    # The first gene of every other cell lifts its total above the depth where thinning begins; the rest stay small
    # counts, which thinning often turns into zeros.
    counts = cells.counts.copy()
    counts[cells.indptr[:-1:2]] += 2000
    cells = CellBatch(cells.indptr, cells.gene_ids, counts, cells.row_ids)
    sums = gene_sums([cells], config, GENES)
    targets, weights = np.zeros(GENES), np.zeros(GENES)
    for step in range(1, 31):
        masked = mask_batch(cells, config, n_genes=GENES, step=step, device=CPU)
        gene_X = masked.mask_position_X.numpy()
        targets += np.bincount(gene_X, masked.target_X.numpy(), GENES)
        weights += np.bincount(gene_X, minlength=GENES)
    # Binomial noise of the number of asked non-zeros: 2,000 cells x 0.3 x 0.25 x 30 steps = 4,500 a gene.
    np.testing.assert_allclose(sums.objective_mean_G, targets / weights, rtol=3 / np.sqrt(4500))


def test_thinning_lowers_the_chance_of_being_asked(random_cells: RandomCells) -> None:
    """Deep cells with single counts: a single read survives thinning half of the time."""
    config = load_config("tiny")
    counts, totals = np.ones(1), np.full(1, 5000.0)
    (probability,) = chosen_probability(counts, totals, config)
    assert probability == pytest.approx(0.5 * 0.3 + 0.5 * (0.5 * 0.3 + 0.5 * 0.03))
    (shallow,) = chosen_probability(counts, np.full(1, 999.0), config)
    assert shallow == pytest.approx(0.3)


def test_gene_sums_of_parts_add_up(config: PretrainConfig, random_cells: RandomCells) -> None:
    cells = random_cells(50)
    dense = np.zeros((50, GENES))
    dense[np.repeat(np.arange(50), np.diff(cells.indptr)), cells.gene_ids] = cells.counts
    target = np.log1p(dense / dense.sum(1, keepdims=True) * 1e4)
    parts = [cells.select(np.arange(first, first + 10)) for first in range(0, 50, 10)]
    sums = gene_sums(parts, config, GENES)
    np.testing.assert_allclose(sums.plain_mean_G, target.mean(0), rtol=1e-6)


def test_a_gene_never_asked_for_predicts_zero() -> None:
    sums = GeneSums(3.0, np.array([1.5]), np.zeros(1), np.zeros(1))
    assert sums.objective_mean_G.tolist() == [0.0]
