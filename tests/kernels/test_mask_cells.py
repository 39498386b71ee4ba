"""Masking: what becomes of each position, that a cell's mask is its own, and the distributions."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from cellfoundry_kernels import MaskedCells, mask_cells
from cellfoundry_kernels.masking import reference
from cellfoundry_kernels.masking.definition import Thresholds

GENES = 2_000
MASK = 102.0


def csr(rows: list[dict[int, float]]) -> tuple[Tensor, Tensor, Tensor]:
    indptr = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    gene_ids = torch.tensor([gene for row in rows for gene in sorted(row)], dtype=torch.int32)
    counts = torch.tensor([row[gene] for row in rows for gene in sorted(row)], dtype=torch.float32)
    return indptr, gene_ids, counts


def random_rows(cells: int, expressed: int = 400, highest: int = 9) -> list[dict[int, float]]:
    genes = [torch.randperm(GENES)[:expressed].tolist() for _ in range(cells)]
    return [{gene: float(torch.randint(1, highest, ())) for gene in row} for row in genes]


def mask(rows: list[dict[int, float]], ids: list[int] | None = None, **options: float) -> MaskedCells:
    arguments = {"n_genes": GENES, "seed": 3, "step": 5} | options
    return mask_cells(*csr(rows), torch.tensor(ids or range(len(rows))), **arguments)  # type: ignore[arg-type]


def cell_of(masked: MaskedCells, cell: int) -> list[Tensor]:
    """Everything that belongs to one cell."""
    tokens = slice(int(masked.cu_seqlens[cell]), int(masked.cu_seqlens[cell + 1]))
    chosen = masked.mask_cell_index_X == cell
    columns = (masked.mask_position_X, masked.mask_value_X, masked.target_X)
    return [masked.value_N[tokens], masked.position_N[tokens], *(column[chosen] for column in columns)]


def test_every_position_is_where_the_objective_wants_it() -> None:
    rows = random_rows(3)
    masked = mask(rows, read_depth_aware=False)
    assert masked.max_seqlen == int(masked.cu_seqlens.diff().max())
    assert masked.cu_seqlens.dtype == torch.int32
    for cell, row in enumerate(rows):
        value, position, chosen, chosen_value, target = cell_of(masked, cell)
        total = sum(row.values())
        normalised = {gene: math.log1p(count / total * 1e4) for gene, count in row.items()}
        encoder = dict(zip(position.tolist(), value.tolist(), strict=True))
        assert position.tolist() == sorted(encoder)
        assert position[-2:].tolist() == [GENES, GENES + 1]
        assert value[-2:].tolist() == pytest.approx([math.log10(total)] * 2)
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert target.tolist() == pytest.approx([normalised.get(gene, 0.0) for gene in chosen.tolist()])

        # Not chosen: the tokens are the non-zeros. Chosen: a token where the value left is positive.
        decoder = dict(zip(chosen.tolist(), chosen_value.tolist(), strict=True))
        expected = normalised | decoder
        expected = {gene: v for gene, v in expected.items() if v > 0 and not (gene in decoder and v == MASK)}
        assert {gene: v for gene, v in encoder.items() if gene < GENES} == pytest.approx(expected)
        # What is neither the mask token nor kept was drawn from the cell's own values.
        own = torch.tensor(list(normalised.values()))
        for gene, v in decoder.items():
            assert v in (MASK, pytest.approx(normalised.get(gene, 0.0))) or (own - v).abs().min() < 1e-5


@pytest.mark.parametrize("read_depth_aware", [True, False], ids=["thinned", "raw"])
def test_a_cell_keeps_its_mask_in_any_company_and_order(read_depth_aware: bool) -> None:
    rows = random_rows(6)
    together = mask(rows, [10, 11, 2**40 + 12, 13, 14, 15], read_depth_aware=read_depth_aware)
    reordered = mask([rows[4], rows[2]], [14, 2**40 + 12], read_depth_aware=read_depth_aware)
    for here, there in ((4, 0), (2, 1)):
        for ours, theirs in zip(cell_of(together, here), cell_of(reordered, there), strict=True):
            assert torch.equal(ours, theirs)


def test_another_seed_step_or_cell_id_gives_another_mask() -> None:
    row = random_rows(1)
    chosen = [
        mask(row, ids, **options).mask_position_X.tolist()
        for ids, options in [([0], {}), ([0], {"seed": 4}), ([0], {"step": 6}), ([1], {}), ([2**32], {})]
    ]
    assert len({tuple(positions) for positions in chosen}) == 5


def test_shares_of_chosen_and_replaced_positions() -> None:
    cells, expressed = 200, 500
    rows = [dict.fromkeys(range(expressed), 1.0) | {0: 2.0} for _ in range(cells)]
    masked = mask(rows, read_depth_aware=False)
    is_value = masked.mask_position_X < expressed

    def close(hits: float, trials: int, share: float) -> bool:
        return abs(hits - trials * share) < 4.5 * math.sqrt(trials * share * (1 - share))

    assert close(int(is_value.sum()), cells * expressed, 0.3)
    assert close(int((~is_value).sum()), cells * (GENES - expressed), 0.03)
    for group in (is_value, ~is_value):
        assert close(int((masked.mask_value_X[group] == MASK).sum()), int(group.sum()), 0.8)
    # A zero that is neither masked nor random stays zero.
    assert close(int((masked.mask_value_X[~is_value] == 0).sum()), int((~is_value).sum()), 0.1)


def test_chosen_positions_are_uniform_and_independent() -> None:
    cells = 1_000
    rows = [dict.fromkeys(range(100), 1.0) for _ in range(cells)]
    masked = mask(rows, n_genes=100, read_depth_aware=False)
    chosen = torch.zeros(cells, 100).index_put(
        (masked.mask_cell_index_X, masked.mask_position_X), torch.tensor(1.0)
    )
    # Chi-square with 100 degrees of freedom: mean 100, standard deviation 14.1.
    variance = cells * 0.3 * 0.7
    assert 50 < float(((chosen.sum(0) - cells * 0.3) ** 2 / variance).sum()) < 165
    neighbours = torch.corrcoef(chosen.T).triu(1)
    assert neighbours.abs().max() < 0.2
    # Binomial spread of the number chosen in a cell, 100 * 0.3 * 0.7 = 21.
    assert 18 < float(chosen.sum(1).var()) < 24


def test_random_values_are_uniform_over_the_cells_own_values() -> None:
    cells = 2_000
    rows = [{gene: float(gene + 1) for gene in range(10)} for _ in range(cells)]
    masked = mask(rows, n_genes=10, read_depth_aware=False, value_mask_prob=1, replace_prob=0, random_prob=1)
    own = torch.log1p(torch.arange(1, 11) / 55 * 1e4)
    drawn = (masked.mask_value_X[:, None] - own).abs().argmin(1)
    hits = torch.bincount(drawn, minlength=10).double()
    # Chi-square with 9 degrees of freedom: 99.9 % below 27.9.
    assert float(((hits - cells) ** 2 / cells).sum()) < 27.9


def input_totals(masked: MaskedCells) -> Tensor:
    return 10 ** masked.value_N[masked.cu_seqlens[1:].long() - 1].double()


def test_thinning_is_binomial_with_a_beta_probability() -> None:
    cells, genes, count = 3_000, 10, 200
    rows = [dict.fromkeys(range(genes), float(count)) for _ in range(cells)]
    masked = mask(rows, n_genes=genes, value_mask_prob=0)
    share = input_totals(masked) / (genes * count)
    thinned = share < 1 - 1e-6
    assert abs(float(thinned.double().mean()) - 0.5) < 4.5 * 0.5 / math.sqrt(cells)
    # T tells the raw total, thinned or not.
    assert masked.value_N[masked.position_N == genes].tolist() == pytest.approx(
        [math.log10(genes * count)] * cells
    )

    share = share[thinned]
    # Beta(2, 2): mean 1/2, variance 1/20, fourth central moment 3/560; binomial noise adds E[p(1-p)]/2000.
    assert abs(float(share.mean()) - 0.5) < 4.5 * math.sqrt(0.05 / len(share))
    assert abs(float(share.var()) - (0.05 + 0.2 / 2_000)) < 4.5 * math.sqrt((3 / 560 - 0.05**2) / len(share))

    # Given the cell's share, a gene is Binomial(200, share): standardised counts have variance 1 - 1/genes.
    encoder = masked.position_N < genes
    cell_N = torch.repeat_interleave(torch.arange(cells), masked.cu_seqlens.diff())
    fraction = torch.zeros(cells, genes, dtype=torch.float64)
    fraction[cell_N[encoder], masked.position_N[encoder]] = masked.value_N[encoder].double().expm1() / 1e4
    counts = fraction[thinned] * (share * genes * count)[:, None]
    assert (counts - counts.round()).abs().max() < 0.01
    middle = (share > 0.05) & (share < 0.95)
    p = share[middle, None]
    standardised = (counts[middle] - count * p) / (count * p * (1 - p)).sqrt()
    assert abs(float(standardised.square().mean()) - 0.9) < 0.05
    assert abs(float((standardised**3).mean())) < 0.1


def test_shallow_cells_are_never_thinned_and_the_target_is_the_raw_cell() -> None:
    shallow = mask([{0: 500.0, 1: 499.0}] * 200)
    assert torch.allclose(input_totals(shallow), torch.tensor(999.0, dtype=torch.float64), rtol=1e-6)
    deep = mask([{0: 600.0, 1: 400.0}] * 200, value_mask_prob=1.0, zero_mask_prob=0.0)
    thinned = input_totals(deep) < 999.9
    assert 60 < int(thinned.sum()) < 140
    assert deep.target_X.view(200, 2)[thinned][:, 0].tolist() == pytest.approx(
        [math.log1p(6e3)] * int(thinned.sum())
    )


def test_a_gene_thinned_away_counts_as_a_zero_of_the_input() -> None:
    # One molecule each: about half of the genes of a thinned cell are gone, and are chosen as zeros are.
    rows = [dict.fromkeys(range(GENES), 1.0) for _ in range(40)]
    masked = mask(rows, value_mask_prob=0, zero_mask_prob=1, replace_prob=0, random_prob=0)
    gone = torch.bincount(masked.mask_cell_index_X, minlength=40)
    assert torch.allclose(gone.double(), GENES - input_totals(masked), atol=0.1)
    assert (masked.mask_value_X == 0).all()
    assert (masked.target_X > 0).all()


def test_cells_without_counts_and_empty_batches_stay_finite() -> None:
    masked = mask([{}, {3: 2.0}, {}])
    assert all(column.isfinite().all() for column in (masked.value_N, masked.mask_value_X, masked.target_X))
    value, position, _, _, target = cell_of(masked, 0)
    assert value.tolist() == [0, 0]
    assert position.tolist() == [GENES, GENES + 1]
    assert (target == 0).all()
    empty = mask([])
    assert len(empty.value_N) == len(empty.target_X) == empty.max_seqlen == 0
    assert empty.cu_seqlens.tolist() == [0]


def test_seed_and_step_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="seed -1: use an integer from 0"):
        mask([{0: 1.0}], seed=-1)
    with pytest.raises(ValueError, match="step 4294967296: use an integer from 0"):
        mask([{0: 1.0}], step=2**32)


def test_columns_of_different_lengths_are_refused() -> None:
    indptr, gene_ids, counts = csr(random_rows(2))
    with pytest.raises(ValueError, match="a count for each gene id"):
        mask_cells(indptr, gene_ids[1:], counts, torch.arange(2), n_genes=GENES, seed=0, step=0)
    with pytest.raises(ValueError, match="one bound more than there are cells"):
        mask_cells(indptr, gene_ids, counts, torch.arange(3), n_genes=GENES, seed=0, step=0)


@pytest.mark.parametrize(
    ("indptr", "genes", "match"),
    [
        ([1, 2, 3], [0, 1, 2], "row bounds that do not ascend from 0 to its 3 entries"),
        ([0, 2, 2], [0, 1, 2], "row bounds"),
        ([0, 4, 3], [0, 1, 2], "row bounds"),
        ([0, 1, 3], [0, 1, GENES], f"gene ids from 0 to {GENES}: give ids from 0 to {GENES - 1}"),
        ([0, 1, 3], [-1, 1, 2], "gene ids from -1 to 2"),
        ([0, 1, 3], [0, 2, 1], "do not ascend in a cell"),
        ([0, 1, 3], [0, 2, 2], "do not ascend in a cell"),
    ],
)
def test_entries_out_of_order_or_range_are_refused(indptr: list[int], genes: list[int], match: str) -> None:
    columns = (torch.tensor(indptr), torch.tensor(genes), torch.ones(3), torch.arange(2))
    with pytest.raises(ValueError, match=match):
        mask_cells(*columns, n_genes=GENES, seed=0, step=0)


@pytest.mark.parametrize(
    ("name", "share"), [("value_mask_prob", 1.1), ("zero_mask_prob", -0.1), ("replace_prob", math.nan)]
)
def test_what_is_no_share_is_refused(name: str, share: float) -> None:
    with pytest.raises(ValueError, match=f"mask_cells got {name} {share:g}: give a share from 0 to 1"):
        mask([{0: 1.0}], **{name: share})
    with pytest.raises(ValueError, match=r"replace_prob \+ random_prob 1.2"):
        mask([{0: 1.0}], replace_prob=0.6, random_prob=0.6)


def test_a_cell_of_every_gene_and_ten_thousand_tiny_ones() -> None:
    everything = mask(
        [dict.fromkeys(range(19_264), 1.0)], n_genes=19_264, value_mask_prob=0, read_depth_aware=False
    )
    assert everything.max_seqlen == len(everything.value_N) == 19_266
    rows = [{gene % 7: 1.0} if gene % 3 else {} for gene in range(10_000)]
    tiny = mask(rows, n_genes=7, value_mask_prob=0, zero_mask_prob=0)
    assert tiny.cu_seqlens.diff().tolist() == [2 + len(row) for row in rows]


def test_columns_with_gaps_and_of_float64_give_the_same_mask() -> None:
    batch = (*csr(random_rows(3)), torch.arange(3))
    expected = mask_cells(*batch, n_genes=GENES, seed=0, step=0)
    gapped = [torch.stack([column, column], 1)[:, 0] for column in batch]
    gapped[2] = gapped[2].double()
    masked = mask_cells(*gapped, n_genes=GENES, seed=0, step=0)
    assert torch.equal(masked.value_N, expected.value_N)
    assert torch.equal(masked.target_X, expected.target_X)


@pytest.mark.parametrize("wrong", [1.5, -1.0, math.nan, math.inf, 2.0**31])
def test_what_is_no_count_is_not_thinned(wrong: float) -> None:
    with pytest.raises(ValueError, match="not whole numbers"):
        mask([{0: 2000.0, 1: wrong}])


def test_fractional_counts_are_normalised_without_thinning() -> None:
    assert mask([{0: 1.5}], read_depth_aware=False).max_seqlen >= 2


def test_thinning_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{0: 900.0, 1: 2.0, 5: 350.0}, {0: 5.0}, {3: 4_000.0, 4: 1.0}]
    whole = mask(rows, value_mask_prob=0)
    assert (input_totals(whole) < torch.tensor([1251.9, 4.9, 4000.9])).any()
    # 7 calls are 28 molecules: pieces end inside genes, at their ends, and hold several genes.
    monkeypatch.setattr(reference, "_THINNING_CALLS", 7)
    assert torch.equal(mask(rows, value_mask_prob=0).value_N, whole.value_N)


def test_blocks_of_cells_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*random_rows(5), {}, {7: 3.0}]
    whole = mask(rows)
    for positions in (1, 2 * GENES):  # one cell at a time, and two
        monkeypatch.setattr(reference, "_BLOCK_POSITIONS", positions)
        in_blocks = mask(rows)
        for field in fields(MaskedCells):
            ours, theirs = getattr(in_blocks, field.name), getattr(whole, field.name)
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


def test_masking_is_a_registered_op_that_compiles_into_one_graph() -> None:
    batch = (*csr(random_rows(2)), torch.arange(2))
    thresholds = [*Thresholds.of(0.3, 0.8, 0.1), *Thresholds.of(0.03, 0.8, 0.1)]
    torch.library.opcheck(reference._mask_cells, (*batch, GENES, 1, 2, thresholds, True, MASK))

    def both(*columns: Tensor) -> Tensor:
        masked = mask_cells(*columns, n_genes=GENES, seed=1, step=2)  # type: ignore[arg-type]
        return torch.cat([masked.value_N, masked.target_X])

    # The sizes of the results depend on the data.
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*batch), both(*batch))
