"""Embedding of real cells by each engine, against the one-cell-at-a-time float32 loop of torch's own layers.

Random weights: the time of a forward pass does not depend on them. Both sides start from the same raw counts, and the
run that is timed also shows how far apart their results are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cellfoundry_bench.kernels.bars import not_measured
from cellfoundry_bench.measure import Comparison, compare, seconds
from cellfoundry_bench.one_cell_loop import OneCellLoop
from cellfoundry_bench.real_cells import real_cells, shallow_cells
from cellfoundry_bench.results import Row, SuiteResult
from cellfoundry_bench.serving.roads import endpoint_answers
from cellfoundry_data.batch import CellBatch
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import save_model
from cellfoundry_model.flops import encoder_flops
from cellfoundry_model.presets import PRESETS
from cellfoundry_serving.embed import embed
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.export import export_model
from cellfoundry_training.peak_flops import peak_flops

FloatArray = npt.NDArray[np.float32]

PEER = "one cell at a time, torch layers, float32"
SHAPE = "100m"
GENES = 368  # with T and S 370 tokens
CALIBRATION_CELLS = (
    36  # of which a third is compared: the default's 96 whole cells take minutes at the published shape
)
FP32_ERROR = 1e-5  # relative to the largest number where that exceeds 1
COSINE = 0.999  # of the precisions that count for BEST
FP32_SPEED, BEST_SPEED, GENE_SPEED = 1.3, 2.5, 1.5
GPU_SPEED, GPU_MFU = 20.0, 0.4


def run() -> SuiteResult:
    """The published shape on cells of 370 tokens, `tiny` on whole cells, and the roads a cell can take."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        published, tiny = random_model(SHAPE, folder / SHAPE), random_model("tiny", folder / "tiny")
        rows = [
            *cell_rows(published, shallow_cells(16, GENES)),
            *gene_rows(published, shallow_cells(2, GENES)),
            *gpu_rows(published),
            *whole_cell_rows(tiny, real_cells(48)),
            *road_rows(tiny, real_cells(24), folder),
        ]
    return SuiteResult(rows)


def random_model(preset: str, out: Path) -> Path:
    """A model directory with random weights."""
    torch.manual_seed(0)
    save_model(CellModel(PRESETS[preset]), Vocabulary.named("scfoundation").genes, out, {"preset": preset})
    return out


def cell_rows(model_dir: Path, batch: CellBatch, rounds: int = 5) -> list[Row]:
    """Cell embeddings on a CPU: torch in both precisions and ONNX Runtime in float32 and int8, in turn with the loop.

    The fastest precision whose cosine to the loop is high enough has the second bar.
    """
    int8, calibration = model_dir.with_name("int8"), model_dir.with_name("calibration.npz")
    save_cells(
        shallow_cells(CALIBRATION_CELLS, batch.nnz // len(batch), seed=1), PRESETS[SHAPE].n_genes, calibration
    )
    export_model(model_dir, int8, precision="int8", decoder=False, calibrate=calibration)
    export_model(model_dir, model_dir.with_name("onnx"), decoder=False)
    loop = loop_of(model_dir)
    engines = {
        "torch fp32": open_engine(model_dir, "torch"),
        "torch bf16": open_engine(model_dir, "torch", "bf16"),
        "ONNX Runtime fp32": open_engine(model_dir.with_name("onnx"), "onnx", provider="cpu"),
        "ONNX Runtime int8": open_engine(int8, "onnx", provider="cpu"),
    }
    expected = loop.encode(batch)
    found = {name: engine.encode(batch) for name, engine in engines.items()}
    timed = in_turn(
        {name: encoding(engine, batch) for name, engine in engines.items()}, loop.encode, batch, rounds
    )
    cosines = {name: cosine(result, expected) for name, result in found.items()}
    fit = [name for name in engines if cosines[name] >= COSINE]
    best = max(fit, key=lambda name: timed[name].ratio)
    rows = []
    for name, comparison in timed.items():
        note = f"{described(batch)}; cosine to the loop at least {cosines[name]:.7f}"
        bars = {"torch fp32": FP32_SPEED, best: BEST_SPEED}
        what = f"cells, {model_dir.name}, {name}" + (f", best at cosine >= {COSINE}" if name == best else "")
        rows.append(comparison.rate_row(what, len(batch), "cells/s", PEER, bar=bars.get(name), note=note))
    return [*rows, error_row(f"cells, {model_dir.name}, torch fp32", found["torch fp32"], expected)]


def gene_rows(model_dir: Path, batch: CellBatch, rounds: int = 3) -> list[Row]:
    """Gene embeddings on a CPU by torch in both precisions, in turn with the loop."""
    loop = loop_of(model_dir)
    engines = {precision: open_engine(model_dir, "torch", precision) for precision in ("fp32", "bf16")}
    expected = loop.encode_genes(batch)
    found = {name: engine.encode(batch, output="gene") for name, engine in engines.items()}
    work = {name: encoding(engine, batch, "gene") for name, engine in engines.items()}
    rows = [
        comparison.rate_row(
            f"gene embeddings, {model_dir.name}, torch {name}",
            len(batch),
            "cells/s",
            PEER,
            bar=GENE_SPEED if name == "fp32" else None,
            note=f"{described(batch)}; cosine to the loop at least {cosine(found[name], expected):.7f}",
        )
        for name, comparison in in_turn(work, loop.encode_genes, batch, rounds).items()
    ]
    return [*rows, error_row(f"gene embeddings, {model_dir.name}, torch fp32", found["fp32"], expected)]


def gpu_rows(model_dir: Path, cells: int = 1024, loop_cells: int = 16, rounds: int = 5) -> list[Row]:
    """Whole cells in bf16 on a GPU, against the loop on the same GPU, and the share of the GPU's peak that is used."""
    what, share = f"cells, {model_dir.name}, on a GPU, bf16", f"cells, {model_dir.name}, on a GPU, MFU"
    if not torch.cuda.is_available():
        return [
            not_measured(what, "cells/s", peer=PEER, bar=GPU_SPEED),
            not_measured(share, "of peak", bar=GPU_MFU),
        ]
    batch, few = real_cells(cells), real_cells(loop_cells)
    engine, loop = open_engine(model_dir, "torch", "bf16"), loop_of(model_dir, "cuda")
    timed = compare(lambda: engine.encode(batch), lambda: loop.encode(few), rounds=rounds)
    scaled = Comparison(timed.ours, [spent * cells / loop_cells for spent in timed.peer])
    flops = encoder_flops(PRESETS[SHAPE], (np.diff(batch.indptr) + 2).tolist())
    peak = peak_flops(torch.device("cuda"), "bf16")
    row = scaled.rate_row(what, cells, "cells/s", PEER, bar=GPU_SPEED, note=described(batch))
    used = flops * (row.value or 0.0) / cells / peak.per_s
    return [row, Row(share, used, "of peak", bar=GPU_MFU, note=f"useful FLOPs; peak by {peak.source}")]


def whole_cell_rows(model_dir: Path, batch: CellBatch, rounds: int = 3) -> list[Row]:
    """Cells as long as they are, in float32 on a CPU."""
    engine, loop = open_engine(model_dir, "torch"), loop_of(model_dir)
    timed = compare(encoding(engine, batch), lambda: loop.encode(batch), rounds=rounds)
    what = f"whole cells, {model_dir.name}, torch fp32"
    return [
        timed.rate_row(what, len(batch), "cells/s", PEER, note=described(batch)),
        error_row(what, engine.encode(batch), loop.encode(batch)),
    ]


def road_rows(model_dir: Path, batch: CellBatch, folder: Path) -> list[Row]:
    """The same cells in other company and by every road in float32, against each alone through torch."""
    engine = open_engine(model_dir, "torch")
    alone = np.concatenate([engine.encode(batch.select(np.array([cell]))) for cell in range(len(batch))])
    export_model(model_dir, folder / "roads", decoder=False)
    source = folder / "cells.npz"
    save_cells(batch, len(engine.vocab_genes), source)
    embed(source, model_dir, folder / "cells.npy")
    roads = {
        "torch, all in one batch": engine.encode(batch),
        "ONNX Runtime, all in one batch": open_engine(folder / "roads", "onnx", provider="cpu").encode(batch),
        "embed, from a file": np.load(folder / "cells.npy"),
        **{f"the endpoint, {wire}": answer for wire, answer in endpoint_answers(engine, batch).items()},
    }
    return [error_row(f"the same cell by {road}", result, alone) for road, result in roads.items()]


def in_turn(
    work: dict[str, Callable[[], object]],
    loop: Callable[[CellBatch], object],
    batch: CellBatch,
    rounds: int,
) -> dict[str, Comparison]:
    """Seconds of each of ``work`` and of the loop, one after another in every round."""
    peer: list[float] = []
    ours: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        peer.append(seconds(lambda: loop(batch)))
        for name, call in work.items():
            ours[name].append(seconds(call))
    return {name: Comparison(spent, peer) for name, spent in ours.items()}


def encoding(engine: Engine, batch: CellBatch, output: str = "cell") -> Callable[[], object]:
    """A call of ``engine``."""
    return lambda: engine.encode(batch, output=output)  # type: ignore[arg-type]


def loop_of(model_dir: Path, device: str = "cpu") -> OneCellLoop:
    """The peer with the weights of ``model_dir``."""
    from cellfoundry_model.checkpoint import load_model

    return OneCellLoop(load_model(model_dir, device).model)


def save_cells(batch: CellBatch, n_genes: int, path: Path) -> None:
    """The cells as a sparse matrix with the vocabulary's columns."""
    import scipy.sparse as sp

    sp.save_npz(path, sp.csr_matrix((batch.counts, batch.gene_ids, batch.indptr), (len(batch), n_genes)))


def cosine(found: FloatArray, expected: FloatArray) -> float:
    """Smallest cosine between two vectors of the last axis, of cells or of genes."""
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return float(((found * expected).sum(-1) / norms).min())


def error_row(what: str, found: FloatArray, expected: FloatArray) -> Row:
    """Largest difference, relative to the largest number where that exceeds 1."""
    error = float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))
    return Row(f"{what}: largest error", error, "relative", bar=FP32_ERROR, bar_is="at most")


def described(batch: CellBatch) -> str:
    """The cells and threads, for a note."""
    threads = torch.get_num_threads()
    return f"{len(batch)} real cells, {batch.nnz // len(batch) + 2:,} tokens each, {threads} threads"
