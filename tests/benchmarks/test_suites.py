"""Each suite's parts at small sizes: they run on this machine and say what a reader expects."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cellfoundry_bench.ragged import GENES_PER_CELL, real_lengths, synthetic_counts
from cellfoundry_bench.real_cells import real_cells
from cellfoundry_bench.suites import embed, kernels, serve, train
from cellfoundry_serving.endpoint.server import running


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
        *kernels.attention_rows(np.array([40, 3, 90]), "cpu", rounds=1),
        *kernels.value_embedding_rows(64, "cpu", rounds=1),
    ]
    unmeasured = [row for row in rows if row.met == "not measured"]
    assert [row.what for row in unmeasured] == [
        "attention forward, Triton",
        "value embedding forward and backward, Triton",
    ]
    assert all(row.note == kernels.NO_GPU for row in unmeasured)
    assert all(row.value is not None and row.value > 0 for row in rows if row not in unmeasured)


def test_padded_peer_does_the_same_work() -> None:
    """The comparison is fair only if both sides compute the same attention."""
    import torch.nn.functional as F

    import cellfoundry_kernels

    lengths = np.array([5, 1, 9])
    cu_seqlens = kernels.offsets(lengths, "cpu")
    q_NHK, k_NHK, v_NHK = kernels._packed(15, "cpu")
    padded = [kernels._pad(x, cu_seqlens, 9) for x in (q_NHK, k_NHK, v_NHK)]
    mask_CL = kernels._token_mask(cu_seqlens, 9)
    out_CHLK = F.scaled_dot_product_attention(
        padded[0], padded[1], padded[2], attn_mask=mask_CL[:, None, None, :]
    )
    ours_NHK = cellfoundry_kernels.varlen_attention(q_NHK, k_NHK, v_NHK, cu_seqlens, 9)
    torch.testing.assert_close(out_CHLK.transpose(1, 2)[mask_CL], ours_NHK)


def test_training_step_parts_and_rates() -> None:
    batch = train.load_batch(cells=1, device="cpu")
    rows = {row.what: row for row in train.step_rows(batch, steps=1, device="cpu")}
    assert "real cells" in rows["training step, cells"].note
    parts = sum(row.value or 0 for name, row in rows.items() if name.startswith("step: "))
    assert rows["training step, cells"].value == pytest.approx(1000 / parts)


def test_embedding_agrees_with_the_loop_it_is_timed_against() -> None:
    speed, difference = embed.embed_rows("tiny", real_cells(3), rounds=1)
    assert speed.ratio is not None
    assert difference.met is True


def test_load_generator_measures_the_live_endpoint() -> None:
    """From a process of its own: every request answered, none refused, and the rows it becomes."""
    rows, curve = serve.overhead_rows(requests=16)
    assert all(row.value is not None and row.value > 0 for row in rows)
    assert [len(line) for line in curve.lines.values()] == [4, 4]
    p50, p99 = (dict(curve.lines[name]) for name in ("p50", "p99"))
    assert all(p50[clients] <= p99[clients] for clients in p50)


def test_model_behind_the_endpoint_against_its_engine() -> None:
    row = serve.model_row(real_cells(8), rounds=1)
    assert row.ratio is not None
    assert row.ratio > 0


def test_refused_requests_make_no_number() -> None:
    with (
        running(serve.NoEngine(n_genes=4)) as url,
        pytest.raises(RuntimeError, match="refused 2 requests of the benchmark"),
    ):
        serve._load(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", url, 2, 1)
