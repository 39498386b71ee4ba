"""Batch embedding to a file: every cell of a source through a model, streamed, in the source's order."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from anndata import AnnData

from cellfoundry_serving.encode import EncodedBlocks, Progress, Source
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.outputs.base import OutputSpec
from cellfoundry_serving.outputs.dispatch import check_output, open_writer


@dataclass(frozen=True)
class EmbedSummary:
    """What ``embed`` wrote.

    Attributes:
        shape: of the written array; the first axis is the cells.
        empty_cells: cells without counts, whose rows are NaN.
        seconds: wall time of reading, computing and writing.
        engine: which engine ran, and why.
    """

    shape: tuple[int, ...]
    empty_cells: int
    seconds: float
    engine: str

    def __str__(self) -> str:
        """One line for people."""
        rate = self.shape[0] / self.seconds
        return f"{' x '.join(f'{n:,}' for n in self.shape)} float32, {rate:,.1f} cells/s, {self.engine}"


def embed(
    src: Source,
    model_dir: str | Path,
    out: str | Path,
    *,
    output: str = "cell",
    pool: str = "all",
    target: str = "t4",
    input_type: str = "singlecell",
    pre_normalized: str = "F",
    engine: str = "auto",
    provider: str | None = None,
    precision: str = "fp32",
    layer: str | None = None,
    progress: Progress | None = None,
) -> EmbedSummary:
    """Embeds ``src`` and writes ``out``, which appears whole or not at all.

    Args:
        src: file or folder of counts, a store, or an AnnData.
        model_dir: model directory, or the directory of an export.
        out: .h5ad, .npy, .parquet or .zarr.
        output: "cell", "gene" or "expression"; this and the other conventions as in ``encode_source``.
        pool: see ``encode_source``.
        target: see ``encode_source``.
        input_type: see ``encode_source``.
        pre_normalized: see ``encode_source``.
        engine: "auto", "torch", "onnx" or "tensorrt".
        provider: "cpu", "cuda" or "tensorrt", for ONNX Runtime; see ``open_engine``.
        precision: "fp32" or "bf16".
        layer: matrix of an AnnData to read; by default the first with whole counts, X with ``pre_normalized``.
        progress: called with ("embed", cells done, cells).

    Raises:
        DataError, ModelError, ServingError: see the layers; what was at ``out`` before is still there then.
    """
    started = time.monotonic()
    out = Path(out)
    check_output(out, output)
    check_source_is_kept(src, out, output)
    conventions = {
        "output": output,
        "pool": pool,
        "target": target,
        "input_type": input_type,
        "pre_normalized": pre_normalized,
    }
    runner = open_engine(model_dir, engine, precision, provider)
    blocks = EncodedBlocks(src, runner, conventions, layer, progress)
    provenance = {name: str(value) for name, value in blocks.conventions.items()} | {
        "engine": runner.why,
        "model_sha256": str(runner.info["weights_sha256"]),
        "vocabulary_sha256": str(runner.info["vocabulary_sha256"]),
        "cellfoundry": version("cellfoundry"),
    }
    spec = OutputSpec(output, blocks.shape, blocks.obs, runner.vocab_genes, provenance, src)
    with open_writer(out, spec) as writer:
        for first, block in blocks:
            writer.write(first, block)
    blocks.warn_about_empty_cells()
    return EmbedSummary(blocks.shape, blocks.empty_cells, time.monotonic() - started, runner.why)


def check_source_is_kept(src: Source, out: Path, output: str) -> None:
    """Raises ServingError where writing ``out`` would destroy the source; adding obsm to an .h5ad keeps it."""
    if isinstance(src, AnnData) or not out.exists() or not Path(src).exists():
        return
    if out.samefile(src) and not (out.suffix.lower() == ".h5ad" and output == "cell"):
        raise ServingError(f"{out} is the source itself and would be overwritten; give another name.")
