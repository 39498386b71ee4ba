"""Each suite's parts at small sizes: they run on this machine and say what a reader expects."""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cellfoundry_bench.kernels import attention, bars, curves, model, ops, timing
from cellfoundry_bench.kernels.dense_masking import dense_mask
from cellfoundry_bench.measure import Comparison
from cellfoundry_bench.ragged import GENES_PER_CELL, real_lengths, synthetic_counts
from cellfoundry_bench.real_cells import real_cells, shallow_cells
from cellfoundry_bench.results import Row
from cellfoundry_bench.suites import embed
from cellfoundry_kernels import favor_attention, mask_cells
from cellfoundry_model.presets import PRESETS


def test_lengths_follow_the_real_distribution() -> None:
    lengths = real_lengths(5000)
    assert (lengths.min() >= GENES_PER_CELL[0]) & (lengths.max() <= GENES_PER_CELL[-1])
    assert abs(np.median(lengths) - GENES_PER_CELL[10]) < 50
    assert (real_lengths(5) == real_lengths(5)).all()


def test_the_quantiles_are_those_of_the_bundled_donor(baron_h5ad: Path) -> None:
    import anndata

    genes = np.diff(anndata.read_h5ad(baron_h5ad).X.indptr)
    shares = np.linspace(0, 1, len(GENES_PER_CELL))
    assert np.quantile(genes, shares).astype(int).tolist() == list(GENES_PER_CELL)


def test_synthetic_counts_are_a_sound_csr_batch() -> None:
    indptr, gene_ids, counts = synthetic_counts(4, 1000)
    assert indptr.dtype == torch.int64
    for first, last in itertools.pairwise(indptr):
        assert (gene_ids[first:last].diff() > 0).all()
    assert counts.min() >= 1
    assert gene_ids.max() < 1000


def test_kernels_suite_needs_torch_and_numpy_only() -> None:
    code = (
        "import sys; import cellfoundry_bench.suites.kernels, cellfoundry_bench.runner; "
        "print(sorted({'ray', 'pandas', 'anndata', 'scipy', 'matplotlib', 'jinja2', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(torch.cuda.is_available(), reason="asserts what a machine without a GPU reports")
def test_kernels_without_a_gpu_say_what_is_not_measured() -> None:
    rows = [
        *attention.attention_rows(np.array([40, 3, 90]), "three cells", "cpu", heads=2, rounds=1),
        *attention.unmeasured_attention_rows(),
        *ops.value_embedding_rows(64, "cpu", None, width=32, rounds=1),
        *ops.favor_rows(1, "cpu", None, positions=100, rounds=1),
        *ops.mask_rows(2, "cpu", n_genes=5000, rounds=1),
        *model.encoder_layer_rows(2, "cpu", None),
        *model.training_step_rows(2, "cpu", None),
    ]
    measured = [row for row in rows if row.met != "not measured"]
    assert [row.what for row in measured] == [
        "varlen_attention forward, three cells",
        "varlen_attention backward, three cells",
        "value_embedding forward and backward",
        "favor_attention forward",
        "favor_attention backward",
        "mask_cells",
    ]
    assert all(row.value is not None and row.value > 0 for row in measured)
    # What we call there is the reference: a ratio to it would say nothing.
    assert [row.ratio is None for row in measured] == [False, False, True, True, True, False]
    unmeasured = [row for row in rows if row.met == "not measured"]
    assert all(row.note == bars.NO_GPU for row in unmeasured)


def test_machines_without_a_gpu_name_every_bar_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a GPU are those of the same code with clocks that need none."""

    def op_rows(device: str, roofline: timing.Roofline | None) -> list[Row]:
        return [
            *ops.value_embedding_rows(64, device, roofline, width=32, rounds=1),
            *ops.favor_rows(1, device, roofline, positions=100, rounds=1),
            *ops.mask_rows(2, device, n_genes=5000, rounds=1),
        ]

    def barred(rows: list[Row]) -> set[tuple[str, str | None, float, str]]:
        return {(row.what, row.peer, row.bar, row.bar_is) for row in rows if row.bar is not None}

    on_cpu = barred([*attention.unmeasured_attention_rows(), *op_rows("cpu", None)])
    for module in (attention, ops):
        monkeypatch.setattr(module, "rotated", lambda *_: lambda: None)
        monkeypatch.setattr(module, "compare_on", lambda *_: Comparison([1.0], [2.0]))
    for name in ("mask_work", "_dense_work"):
        monkeypatch.setattr(ops, name, lambda *_: lambda: None)
    monkeypatch.setattr(ops, "_extra_memory", lambda *_: 1)
    monkeypatch.setattr(torch, "compile", lambda op, **_: op)
    of_attention = itertools.chain.from_iterable(
        attention.attention_rows(lengths, what, "cuda")
        for what, lengths in attention.attention_batches("cuda")
    )
    on_gpu = barred([*of_attention, *op_rows("cuda", timing.Roofline(1.0, 1.0))])
    assert on_cpu == on_gpu
    # Against padded cells only where any are: of equal length none is.
    padded = {what for what, peer, *_ in on_gpu if peer == attention.PADDED["cuda"]}
    assert padded == {f"varlen_attention {part}, real lengths" for part in attention.BARS}


def test_work_of_favor_is_what_its_reference_multiplies() -> None:
    """By torch's count. Its backward keeps the features of queries and keys, which the kernels make again."""
    counted = {}
    for part in ops.PARTS:
        work = ops.favor_work(favor_attention, part, 1, 300, "cpu")
        with FlopCounterMode(display=False) as counter:
            work()
        counted[part] = counter.get_total_flops()
    cost = {part: ops.favor_cost(part, 1, 300, 4).flops for part in ops.PARTS}
    assert cost["backward"] == 2 * cost["forward"]
    # The reference's products have a column more, of the denominators.
    assert counted["forward"] == pytest.approx(cost["forward"], rel=0.02)
    assert counted["backward"] + cost["forward"] / 2 == pytest.approx(cost["backward"], rel=0.02)


def test_curves_have_both_rates_over_length() -> None:
    found = [
        *curves.attention_curves((16, 32), "cpu", tokens=64, heads=1),
        *curves.embedding_curves((16, 32), "cpu"),
        *curves.favor_curves((16, 32), "cpu"),
        *curves.mask_curves((16, 32), "cpu", cells=2),
    ]
    titles = [
        "varlen_attention forward, head dim 64, cpu",
        "varlen_attention backward, head dim 64, cpu",
        "value_embedding forward and backward, width 768, cpu",
        "favor_attention forward, 1 cells, cpu",
        "favor_attention backward, 1 cells, cpu",
    ]
    assert [curve.title for curve in found[::2]] == [*titles, "mask_cells, 2 cells, cpu"]
    assert [curve.title for curve in found[1::2]] == titles
    assert all("TFLOP/s" in curve.y_label for curve in found[:-1:2])
    assert all(curve.y_label == "GB/s" for curve in (*found[1::2], found[-1]))
    for curve in found:
        assert [x for x, _ in curve.lines["ours"]] == [16, 32]
        assert all(y > 0 for _, y in curve.lines["ours"])


def test_packed_and_padded_do_the_same_work() -> None:
    """The comparisons are fair only if both sides compute the same."""
    cells = attention.Ragged.of(np.array([5, 1, 9]), "cpu", heads=2)
    is_token_CL = attention._token_mask(cells.cu_seqlens, 9)
    out_CHLK = attention.padded(cells).call()
    torch.testing.assert_close(out_CHLK.transpose(1, 2)[is_token_CL], attention.ours(cells).call())
    row = model.packed_against_padded_row("tiny", np.array([5, 1, 9]), rounds=1)  # compares before it times
    assert row.ratio is not None


def test_the_encoder_in_bf16_says_how_far_it_is_from_float32() -> None:
    row = model.bf16_row("tiny", np.array([5, 1, 9]), rounds=1)
    assert row.ratio is not None
    said = re.search(r"RMS error (\S+), cosine of every token at least (\S+)$", row.note)
    assert said is not None
    assert 0 < float(said[1]) < 5e-3
    assert float(said[2]) > 0.9999


# Torch's own, while it traces vmap.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_every_batch_of_flex_attention_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch gives up after eight and warns; what it then runs holds all N x N logits."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    for length in range(3, 12):
        cells = attention.Ragged.of(np.array([length, 5]), "cpu", heads=2)
        out_1HNK = attention.flex(cells).call()
        torch.testing.assert_close(out_1HNK[0].transpose(0, 1), attention.ours(cells).call())


def test_the_dense_peer_masks_as_often_as_the_objective_says() -> None:
    torch.manual_seed(0)
    indptr, gene_ids, counts = synthetic_counts(20, 6000)
    encoder_CP, is_token_CP, chosen_CG, target_CG = dense_mask(indptr, gene_ids, counts, 6000)
    zero_CG = torch.ones_like(chosen_CG)
    zero_CG[torch.repeat_interleave(torch.arange(20), indptr.diff()), gene_ids] = False
    assert 0.028 < chosen_CG[zero_CG].float().mean() < 0.045
    assert 0.25 < chosen_CG[~zero_CG].float().mean() < 0.31
    assert abs((encoder_CP[:, :-2][chosen_CG] == 102.0).float().mean() - 0.8) < 0.02
    assert (target_CG[zero_CG] == 0).all()
    assert is_token_CP[:, -2:].all()


def test_masks_and_flops_of_a_step_agree() -> None:
    indptr, gene_ids, counts = synthetic_counts(2, PRESETS["100m"].n_genes)
    masked = mask_cells(
        indptr, gene_ids, counts, torch.arange(2), n_genes=PRESETS["100m"].n_genes, seed=0, step=0
    )
    # About 2 x (12 layers over 1,500 tokens and 6 over 19,266 positions): 0.8 TFLOP a cell.
    assert 0.5e12 < model.step_flops(masked) < 3e12


def test_time_on_a_cpu_rotates_through_one_set_of_inputs() -> None:
    calls: list[int] = []
    work = timing.rotated(lambda seed: lambda: calls.append(seed), "cpu", 1)
    timed = timing.compare_on("cpu", work, work, rounds=2)
    assert calls == [0] * 6
    assert len(timed.ours) == 2
    assert timing.Roofline(2.0, 4.0).seconds(timing.Cost(8.0, 4.0)) == 4.0


def test_embedding_agrees_with_the_loop_it_is_timed_against(tmp_path: Path) -> None:
    """Small shapes of every row; a GPU's are named."""
    tiny = embed.random_model("tiny", tmp_path / "tiny")
    cells = embed.cell_rows(tiny, shallow_cells(3, 60), rounds=1)
    assert [row.what.split(", ")[2] for row in cells[:4]] == [
        "torch fp32",
        "torch bf16",
        "ONNX Runtime fp32",
        "ONNX Runtime int8",
    ]
    assert sorted(row.bar for row in cells[:4] if row.bar) in ([1.3, 2.5], [2.5])
    assert all(row.ratio is not None and row.ratio > 0 for row in cells[:4])
    genes = embed.gene_rows(tiny, shallow_cells(1, 60), rounds=1)
    whole = embed.whole_cell_rows(tiny, real_cells(3), rounds=1)
    roads = embed.road_rows(tiny, real_cells(3), tmp_path)
    errors = [row for row in [*cells, *genes, *whole, *roads] if row.unit == "relative"]
    assert len(errors) == 10
    assert all(row.met is True for row in errors)
    if not torch.cuda.is_available():
        assert {row.met for row in embed.gpu_rows(tiny)} == {"not measured"}


def test_shallow_cells_are_thinned_to_the_asked_genes() -> None:
    deep, shallow = real_cells(20, seed=3), shallow_cells(20, 370, seed=3)
    genes = np.diff(shallow.indptr)
    assert abs(genes.mean() - 370) < 10
    for cell in range(20):
        kept = slice(shallow.indptr[cell], shallow.indptr[cell + 1])
        whole = slice(deep.indptr[cell], deep.indptr[cell + 1])
        counts = dict(zip(deep.gene_ids[whole], deep.counts[whole], strict=True))
        assert all(
            0 < count <= counts[gene]
            for gene, count in zip(shallow.gene_ids[kept], shallow.counts[kept], strict=True)
        )
