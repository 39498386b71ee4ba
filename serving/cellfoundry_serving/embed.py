"""Batch embedding to a file: every cell of a source through a model, in its order, in parts that survive a kill."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from anndata import AnnData

from cellfoundry_data.readers.location import as_location
from cellfoundry_data.urls import is_url
from cellfoundry_serving.encode import (
    Progress,
    Source,
    check_decoder_fits,
    open_for,
    warn_about_empty_cells,
    warn_about_part,
    with_bulk_median,
)
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.outputs.dispatch import check_output
from cellfoundry_serving.outputs.h5ad import check_obs_is_written
from cellfoundry_serving.parts.genes import chosen_genes
from cellfoundry_serving.parts.job import EmbedJob
from cellfoundry_serving.parts.means import groups_of
from cellfoundry_serving.parts.plan import PartPlan
from cellfoundry_serving.parts.request import export_hash, source_identities
from cellfoundry_serving.parts.roads import open_road
from cellfoundry_serving.parts.sources_kept import check_source_is_kept
from cellfoundry_serving.parts.task import Computing, EmbedTask, EngineChoice
from cellfoundry_serving.parts.work_folder import leaving_what_is_done, work_folder


@dataclass(frozen=True)
class EmbedSummary:
    """What ``embed`` wrote.

    Attributes:
        shape: of the written array; the first axis is the cells, of means the groups.
        cells: cells of the source.
        cells_before: of these, cells that an earlier run had done.
        empty_cells: cells without counts, whose rows are NaN; no mean holds them.
        averaged: cells that are in the means: those with counts and a value of the column; None without means.
        seconds: wall time of reading, computing and writing.
        engine: which engine ran, and why.
        road: where it ran, and why there.
    """

    shape: tuple[int, ...]
    cells: int
    cells_before: int
    empty_cells: int
    averaged: int | None
    seconds: float
    engine: str
    road: str

    def __str__(self) -> str:
        """One line for people."""
        rate = (self.cells - self.cells_before) / self.seconds
        resumed = f" ({self.cells_before:,} cells were done before)" if self.cells_before else ""
        means = "" if self.averaged is None else f", means of {self.averaged:,} of {self.cells:,} cells"
        return (
            f"{' x '.join(f'{n:,}' for n in self.shape)} float32{means}, {rate:,.1f} cells/s{resumed}, {self.engine}; "
            f"{self.road}"
        )


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
    genes: str | Path | Sequence[str] | None = None,
    mean_by: str | None = None,
    shards: bool = False,
    workers: int | None = None,
    num_gpus: float | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> EmbedSummary:
    """Embeds ``src`` and writes ``out``, which appears whole or not at all.

    What is killed, fails or is interrupted leaves the finished parts in the hidden folder ``.NAME.partial`` beside
    ``out``, and the same call goes on from there to the same output; an AnnData in memory begins anew.

    Args:
        src: file of counts, a store, a folder or list of them (obs gets a column ``source``), or an AnnData.
        model_dir: model directory, or the directory of an export.
        out: .h5ad, .npy, .parquet, .arrow or .zarr.
        output: "cell", "gene" or "expression"; this and the other conventions as in ``encode_source``.
        pool: see ``encode_source``.
        target: see ``encode_source``.
        input_type: see ``encode_source``.
        pre_normalized: see ``encode_source``.
        engine: "auto", "torch", "onnx" or "tensorrt".
        provider: "cpu", "cuda" or "tensorrt", for ONNX Runtime; see ``open_engine``.
        precision: "fp32" or "bf16".
        layer: matrix of an AnnData to read; by default the first with whole counts, X with ``pre_normalized``.
        genes: genes to keep of gene and expression outputs: a list, a text with commas, or a file with one a line.
        mean_by: obs column: write the mean over the cells of each of its values, in the order of the values as text.
        shards: make ``out`` (.parquet or .arrow) a folder of files.
        workers: Ray actors that compute, each with a model of its own; None is this process, or one for each GPU of
            the cluster of RAY_ADDRESS where that has several.
        num_gpus: GPUs of each worker; None is one where the cluster has GPUs.
        fresh: use nothing that an earlier call has left.
        progress: called with ("embed", cells done, cells).

    Raises:
        DataError, ModelError, ServingError: see the layers; what was at ``out`` before is still there then.
    """
    started = time.monotonic()
    out = Path(out)
    source = absolute_source(src)
    check_output(out, output, shards=shards)
    if genes is not None and output == "cell":
        raise ServingError("Cell embeddings have no gene axis to choose --genes from; add --output gene.")
    if pool != "all" and output != "cell":
        raise ServingError(
            "--pool is how a cell's tokens become one embedding; leave it out, or take --output cell."
        )
    if shards and mean_by is not None:
        raise ServingError("Means are small and need no --shards; leave it out.")
    check_source_is_kept(
        source, out, adds_to_it=out.suffix.lower() == ".h5ad" and output == "cell" and mean_by is None
    )
    if isinstance(source, AnnData) and out.suffix.lower() == ".h5ad" and mean_by is None:
        check_obs_is_written(source)
    conventions = {
        "output": output,
        "pool": pool,
        "target": target,
        "input_type": input_type,
        "pre_normalized": pre_normalized,
    }
    asked = {"layer": layer, "mean_by": mean_by, "shards": shards, **conventions}
    identities = None if isinstance(source, AnnData) else source_identities(source)
    choice = EngineChoice(str(Path(model_dir).absolute()), engine, precision, provider)
    with open_road(choice, conventions, source, workers, num_gpus) as road:
        facts = road.facts
        check_decoder_fits(facts.info, output)
        warn_about_part(facts.info, output)
        kept = None if genes is None else chosen_genes(genes, facts.vocab_genes)
        row_shape = facts.row_shape if kept is None else (len(kept), *facts.row_shape[1:])
        cells = open_for(conventions, source, facts.vocab_genes, layer)
        obs = cells.obs  # before any work, so that an obs that cannot be read is told now
        names, groups = groups_of(obs, mean_by) if mean_by is not None else (None, None)
        task = EmbedTask(
            key=uuid.uuid4().hex,
            source=source,
            identities=identities,
            layer=layer,
            vocab_genes=facts.vocab_genes,
            groups=groups,
            computing=Computing(
                choice,
                str(facts.info["weights_sha256"]),
                with_bulk_median(conventions, cells),
                kept,
                row_shape,
                PartPlan.of(cells.n_cells, row_shape),
            ),
        )
        request = asked | {
            "sources": identities,
            "model": facts.info["weights_sha256"],
            "engine": facts.name,
            "precision": facts.precision,
            "export": export_hash(model_dir, facts.name),
            "provider": provider,
            "genes": None if kept is None else list(kept),
            "version": version("cellfoundry"),
            "part_cells": task.computing.plan.part_cells,
        }
        job = EmbedJob(task, road, cells, names, request, progress)
        with work_folder(out) as work:
            job.prepare(work, fresh=fresh or identities is None)
            with leaving_what_is_done(work, resumable=identities is not None):
                done = job.go_on(work)
            work.remove()
    warn_about_empty_cells(done.empty, done.n_cells, means=names is not None)
    return EmbedSummary(
        (done.n_cells if names is None else len(names), *row_shape),
        done.n_cells,
        done.cells_before,
        done.empty,
        done.averaged,
        time.monotonic() - started,
        " and ".join(done.engines),
        road.why,
    )


def absolute_source(source: Source) -> Source:
    """The source for a worker that stands in another folder; a list of one is that one."""
    if isinstance(source, AnnData):
        return source
    if isinstance(source, str | Path):
        where = as_location(source)
        return where if is_url(where) else str(Path(where).absolute())  # of a link, the link's own name
    return absolute_source(source[0]) if len(source) == 1 else [str(absolute_source(each)) for each in source]
