"""mask_cells, in Triton's interpreter, against the reference (run by ../test_triton_interpreter.py).

Decisions are the same to the last bit; one float value of a test may differ in its last bit, because log and log1p
are another library's.
"""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor
from twins import DEVICE, gpu_only

from cellfoundry_bench.ragged import counts_of_lengths
from cellfoundry_kernels import MaskedCells, mask_cells
from cellfoundry_kernels.masking.definition import Thresholds
from cellfoundry_kernels.masking.kernel import _mask_cells

GENES = 1_050  # two blocks of positions, the second one nearly empty
Columns = tuple[Tensor, Tensor, Tensor, Tensor]


def columns(lengths: list[int]) -> Columns:
    """A batch with cells of these lengths; counts are mostly small, one is far larger."""
    indptr, gene_ids, counts = (x.to(DEVICE) for x in counts_of_lengths(lengths, GENES))
    counts[len(counts) // 2] = 301
    cell_ids = torch.cat([torch.tensor([2**40 + 7, 5, -3, 11]), torch.arange(12, 12 + len(lengths))])
    cell_ids = cell_ids[: len(lengths)]
    return indptr, gene_ids.int(), counts, cell_ids


def by_reference(monkeypatch: pytest.MonkeyPatch, batch: Columns, **settings: float) -> MaskedCells:
    with monkeypatch.context() as patch:
        patch.setenv("CELLFOUNDRY_KERNELS", "torch")
        return mask_cells(*batch, n_genes=GENES, **settings)  # type: ignore[arg-type]


def last_bits(actual: Tensor, expected: Tensor) -> int:
    """Difference of float32 values >= 0 in units of the last place, summed."""
    assert not actual.isnan().any()
    return int((actual.view(torch.int32) - expected.view(torch.int32)).abs().sum())


def assert_same_mask(actual: MaskedCells, expected: MaskedCells) -> None:
    assert actual.max_seqlen == expected.max_seqlen
    for field in fields(MaskedCells):
        ours, theirs = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(theirs, Tensor):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            if ours.is_floating_point():
                # The last bit of a float64 can, rarely, tip its rounding to float32.
                assert last_bits(ours, theirs) <= 1
            else:
                assert torch.equal(ours, theirs)


SETTINGS = {
    "thinned": {"seed": 3, "step": 4},
    "raw": {"seed": 3, "step": 4, "read_depth_aware": False},
    "most-chosen-largest-seed": {
        "seed": 2**32 - 1,
        "step": 2**31,
        "value_mask_prob": 1.0,
        "zero_mask_prob": 0.7,
        "replace_prob": 0.2,
        "random_prob": 0.5,
    },
    "none-chosen": {"seed": 0, "step": 1, "value_mask_prob": 0.0, "zero_mask_prob": 0.0},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_same_mask_as_the_reference(settings: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    batch = columns([700, 0, 400, 3])
    masked = mask_cells(*batch, n_genes=GENES, **settings)  # type: ignore[arg-type]
    assert_same_mask(masked, by_reference(monkeypatch, batch, **settings))


@gpu_only
def test_ten_thousand_tiny_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = columns([cell % 6 for cell in range(10_000)])
    masked = mask_cells(*batch, n_genes=GENES, seed=3, step=4)
    assert_same_mask(masked, by_reference(monkeypatch, batch, seed=3, step=4))


def test_a_thinned_and_an_unthinned_cell_are_among_these(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would show nothing: S is below T in a thinned cell only."""
    masked = by_reference(monkeypatch, columns([700, 0, 400, 3]), seed=3, step=4)
    last = masked.cu_seqlens[1:].long() - 1
    shallower = (masked.value_N[last] < masked.value_N[last - 1]).tolist()
    assert True in shallower
    assert False in shallower[:3:2]


def test_wide_ids_and_columns_with_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = columns([300, 200])
    expected = by_reference(monkeypatch, batch, seed=1, step=2)
    gapped = [torch.stack([column, column], 1)[:, 0] for column in (batch[0], batch[1].long(), *batch[2:])]
    assert not any(column.is_contiguous() for column in gapped)
    assert_same_mask(mask_cells(*gapped, n_genes=GENES, seed=1, step=2), expected)  # type: ignore[arg-type]


def test_fractional_counts_are_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    indptr, gene_ids, counts, cell_ids = columns([300])
    # Down to where 1 + x rounds to 1, and a stored zero.
    counts = torch.logspace(-25, 4, 300)[torch.randperm(300)]
    counts[7] = 0
    batch = (indptr, gene_ids, counts, cell_ids)
    settings = {"seed": 1, "step": 2, "read_depth_aware": False}
    masked = mask_cells(*batch, n_genes=GENES, **settings)  # type: ignore[arg-type]
    assert_same_mask(masked, by_reference(monkeypatch, batch, **settings))


# The host learns of the counts after the kernels have run on them; numpy warns where a GPU gives NaN.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("wrong", [1.5, -1.0, torch.nan, torch.inf, 2.0**31])
def test_what_is_no_count_is_refused_as_the_reference_does(
    wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = columns([20, 30])
    batch[2][25] = wrong
    with pytest.raises(ValueError, match="not whole numbers") as ours:
        mask_cells(*batch, n_genes=40, seed=1, step=2)
    with pytest.raises(ValueError, match="not whole numbers") as theirs:
        by_reference(monkeypatch, batch, seed=1, step=2)
    assert str(ours.value) == str(theirs.value)


def test_no_counts_and_no_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    for lengths in ([0, 0], []):
        nothing = torch.empty(0)
        batch = (torch.zeros(len(lengths) + 1).long(), nothing.int(), nothing, torch.arange(len(lengths)))
        masked = mask_cells(*batch, n_genes=GENES, seed=1, step=2)
        assert_same_mask(masked, by_reference(monkeypatch, batch, seed=1, step=2))


def test_registered_op() -> None:
    thresholds = [*Thresholds.of(0.3, 0.8, 0.1), *Thresholds.of(0.03, 0.8, 0.1)]
    torch.library.opcheck(_mask_cells, (*columns([20, 30]), 40, 1, 2, thresholds, True, 102.0))


def test_compiles_into_one_graph() -> None:
    batch = columns([20, 30])

    def mask(indptr: Tensor, gene_ids: Tensor, counts: Tensor, cell_ids: Tensor) -> Tensor:
        masked = mask_cells(indptr, gene_ids, counts, cell_ids, n_genes=40, seed=1, step=2)
        return torch.cat([masked.value_N, masked.target_X])

    # The sizes of the results depend on the data.
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(mask, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*batch), mask(*batch))
