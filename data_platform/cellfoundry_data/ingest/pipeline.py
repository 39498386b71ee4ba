"""Ingest in two passes, each a Ray Data job: parts of sources to sorted runs, buckets of those to shards.

Cells are ordered by a hash of their identity and the seed, and a shard is a range of that order: the store is
the same whatever the number of workers. Memory is that of one run or one shard a worker, whatever the size of
the sources. The runs take 2 bytes an entry, 5 of fractions, on the store's disk until the store is finished.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from cellfoundry_data import vocabulary
from cellfoundry_data.aliases import Aliases
from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest.appending import generation, store_to_append_to, stores_schema, take_frame
from cellfoundry_data.ingest.duplicate_keys import HASHES, DuplicateSearch, ShardHashes
from cellfoundry_data.ingest.duplicates import n_ranges
from cellfoundry_data.ingest.jobs import run_items, silent_ray_data
from cellfoundry_data.ingest.obs_columns import common_schema
from cellfoundry_data.ingest.plan import (
    Progress,
    ReadOptions,
    SourcePlan,
    absolute,
    identity,
    look_at_sources,
    source_names,
)
from cellfoundry_data.ingest.process_memory import collector_at_rest
from cellfoundry_data.ingest.publishing import manifest_digest, publish_build, resume_publishing
from cellfoundry_data.ingest.reports import PartReport, ReadProgress, source_entry
from cellfoundry_data.ingest.shards import CELLS_PER_SHARD, ShardBuild, count_buckets
from cellfoundry_data.ingest.space import disk_full_as_sentence, expected_bytes, require_space
from cellfoundry_data.ingest.spill import PartTask, spill_part
from cellfoundry_data.ingest.work_folder import WorkFolder, committed, fingerprint
from cellfoundry_data.qc import QcLimits
from cellfoundry_data.ray_cluster import ray_cluster
from cellfoundry_data.readers.expand import expand_sources
from cellfoundry_data.store import codec
from cellfoundry_data.store.format import VERSION, Profile, Values, qc_file
from cellfoundry_data.store.reader import Frame, read_frame
from cellfoundry_data.store.replace import refuse_foreign_folder, work_folder
from cellfoundry_data.store.writer import finish_store, start_store
from cellfoundry_data.urls import is_url


def ingest(
    sources: Sequence[str],
    store: str | Path,
    *,
    vocab: str = "scfoundation",
    aliases: str | Path | None = None,
    limits: QcLimits | None = None,
    min_genes: int | None = None,
    seed: int = 0,
    layer: str | None = None,
    values: Values = "counts",
    profile: Profile = "compact",
    append: bool = False,
    fresh: bool = False,
    cells_per_shard: int = CELLS_PER_SHARD,
    cpus: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Align, filter and shuffle the cells of ``sources`` into a store, which appears whole or not at all.

    A cell is known by the number of its source and its row there. An existing store at ``store`` is replaced
    when the new one is complete; with ``append`` it gets the new cells as shards of their own. Uses the Ray
    cluster that this process is connected to, else a local one.

    An ingest that is killed, fails or is interrupted leaves what it finished in the hidden folder
    ``.NAME.partial`` beside the store. The same call goes on from there; removing the folder, or ``fresh``,
    discards it. It needs 2 bytes an entry there, 5 of fractions, until the store is finished.

    Args:
        sources: files, folders and URLs of cells; see ``readers.expand_sources``.
        store: folder to write.
        vocab: name or file of the gene vocabulary.
        aliases: an HGNC complete-set file with more names of genes.
        limits: which cells stay; default ``QcLimits()``.
        min_genes: short for ``QcLimits(min_genes=...)``.
        seed: of the global shuffle.
        layer: which matrix of an AnnData; None is the first that holds counts.
        values: "counts", or "float32" for numbers that are not whole.
        profile: "compact", or "fast" for twice the bytes and less work to read.
        append: add the cells to the store that is there; its options are used and others refused.
        fresh: use nothing that an ingest before has left.
        cells_per_shard: cells of a shard, about; a worker's memory grows with it.
        cpus: workers of a local cluster, 0.7 GB each; None is one for each CPU that this process may use.
        progress: called with (label, done, total).

    Returns:
        The store's manifest.

    Raises:
        DataError: a source that cannot be used, no cell left, a full disk, or a folder at ``store`` that is no
            store or, with ``append``, not of these options.
    """
    if is_url(store):
        raise DataError(f"{store}: a store is written to a local folder; copy it there when it is finished.")
    store = Path(store).resolve()
    refuse_foreign_folder(store)
    _check(seed, values, profile, cells_per_shard)
    options = _options(vocab, aliases, layer, values, limits, min_genes, seed)
    sources = expand_sources(sources)
    with work_folder(store) as path, collector_at_rest():
        work = WorkFolder(path, store)
        if fresh:
            work.keep_only(set())
        with _leaving_what_is_done(work):
            identities = [(absolute(source), *identity(source)) for source in sources]
            request = fingerprint(identities, options.key, profile, append, cells_per_shard)
            if not resume_publishing(work, request):
                base = store_to_append_to(store, sources, options, profile) if append else None
                build = _build(work, sources, base, options, profile, cells_per_shard, cpus, progress)
                publish_build(work, build, request, manifest_digest(store) if base else "")
        work.remove()
    return read_frame(store).manifest


def _build(
    work: WorkFolder,
    sources: Sequence[str],
    base: Frame | None,
    options: ReadOptions,
    profile: Profile,
    cells_per_shard: int,
    cpus: int | None,
    progress: Progress | None,
) -> Path:
    """Build the store, or what is added to the store ``base``, and give its folder."""
    previous = base.manifest if base else None
    known = previous["sources"] if previous else []
    names = source_names(sources, {source["name"] for source in known})
    plans = look_at_sources(sources, names, len(known), options, progress)
    schema = stores_schema(work.store, base, plans) if base else common_schema(plan.schema for plan in plans)
    parts = [
        PartTask(plan, options, schema, number, start, stop, work.path, work.parts)
        for plan in plans
        for number, (start, stop) in enumerate(plan.parts())
    ]
    key = fingerprint(
        [part.fingerprint for part in parts],
        VERSION,
        codec.VERSIONS,
        profile,
        cells_per_shard,
        manifest_digest(work.store) if base else "",
    )
    folders = {stage: work.path / f"{stage}-{key}" for stage in ("hashes", "duplicates", "shards", "store")}
    _prepare(work, [*(part.target for part in parts), *folders.values()])

    expected = expected_bytes(plans, options.values, profile)
    require_space(work.path, expected)
    with disk_full_as_sentence(work.path, expected), ray_cluster(cpus=cpus), silent_ray_data():
        reports = _read(parts, plans, progress)
        total = PartReport.sum(reports)
        _require_cells(work, total, plans, reports, options)
        duplicates = _find_duplicates(work, parts, base, total.cells, options.seed, folders)
        shards = ShardBuild(
            runs=[run for part in parts for run in part.runs()],
            duplicates=duplicates,
            n_buckets=count_buckets(total.cells, total.nnz, cells_per_shard),
            generation=generation(base),
            folder=folders["store"],
            entries=folders["shards"],
            work=work.path,
            values=options.values,
            profile=profile,
        )
        _write(work.store, shards, options, base, progress)
        flagged = duplicates.counts()
        entries = [
            source_entry(plan, report, flagged[plan.index])
            for plan, report in zip(plans, reports, strict=True)
        ]
        _write_qc(folders["store"] / qc_file(shards.generation), plans, reports)
        finish_store(
            folders["store"],
            options.vocabulary,
            shards.index_rows(),
            seed=options.seed,
            qc=options.limits.model_dump(),
            sources=entries,
            values=options.values,
            profile=profile,
            previous=previous,
        )
    return folders["store"]


def _check(seed: int, values: str, profile: str, cells_per_shard: int) -> None:
    """Raise DataError for what a manifest could not hold: found out at the end, it would cost the old store."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise DataError(f"seed is {seed!r}: give a whole number.")
    for name, value, allowed in (
        ("values", values, get_args(Values)),
        ("profile", profile, get_args(Profile)),
    ):
        if value not in allowed:
            raise DataError(f"{name} is {value!r}: give {' or '.join(allowed)}.")
    if cells_per_shard < 1:
        raise DataError(f"cells_per_shard is {cells_per_shard}: a shard holds at least one cell.")


def _options(
    vocab: str,
    aliases: str | Path | None,
    layer: str | None,
    values: Values,
    limits: QcLimits | None,
    min_genes: int | None,
    seed: int,
) -> ReadOptions:
    if limits is not None and min_genes is not None:
        raise DataError("limits and min_genes were both given: put min_genes into the limits.")
    limits = limits or QcLimits(**({} if min_genes is None else {"min_genes": min_genes}))
    genes = vocabulary.load(vocab)
    limits.check(genes)
    names = Aliases.from_hgnc(aliases) if aliases else None
    table = hashlib.sha256(Path(aliases).read_bytes()).hexdigest() if aliases else ""
    key = fingerprint(genes.hash, table, layer, values, limits.model_dump(), seed)
    return ReadOptions(genes, names, layer, values, limits, seed, key)


def _prepare(work: WorkFolder, folders: Sequence[Path]) -> None:
    """Clear what an ingest of other sources or options has left."""
    if work.keep_only({folder.name for folder in folders}):
        warnings.warn(
            f"what an unfinished ingest into {work.store.name} had left was removed: its sources or options were "
            "others.",
            UserWarning,
            stacklevel=4,
        )
    work.parts.mkdir(exist_ok=True)


def _read(parts: list[PartTask], plans: list[SourcePlan], progress: Progress | None) -> list[PartReport]:
    """Spill the parts that are not done; the reports of the sources."""
    missing = [part for part in parts if not part.target.is_dir()]
    shown = ReadProgress(parts, missing, progress)
    for step in run_items(spill_part, missing):
        shown(missing[step.item], step)
    reports = {plan.index: PartReport() for plan in plans}
    for part in parts:
        reports[part.source.index].add(PartReport.read(part.target))
    return list(reports.values())


def _require_cells(
    work: WorkFolder,
    total: PartReport,
    plans: list[SourcePlan],
    reports: list[PartReport],
    options: ReadOptions,
) -> None:
    if not total.cells:
        work.keep_only(set())  # the same call would end here again
        genes = max(plan.alignment.genes for plan in plans)
        advice = "check the sources, or name another matrix with --layer"
        if total.removed["without_counts"] < total.cells_read:
            advice = f"lower --min-genes ({options.limits.min_genes}) or check the sources"
        removed = ", ".join(f"{name} {cells:,}" for name, cells in total.removed.items() if cells)
        raise DataError(
            f"every one of the {total.cells_read:,} cells was removed ({removed}; the sources measure up to {genes:,} "
            f"of the vocabulary's genes); {advice}."
        )
    for plan, report in zip(plans, reports, strict=True):
        if not report.cells:
            warnings.warn(f"{plan.name}: no cell is kept.", UserWarning, stacklevel=4)


def _find_duplicates(
    work: WorkFolder,
    parts: list[PartTask],
    base: Frame | None,
    cells: int,
    seed: int,
    folders: dict[str, Path],
) -> DuplicateSearch:
    """Search all cells, those of the store ``base`` too, for cells that equal an earlier one."""
    hashes = [part.target / HASHES for part in parts]
    if base:
        old = ShardHashes(work.store, folders["hashes"], work.path)
        folders["hashes"].mkdir(exist_ok=True)
        shards = range(len(base.index.names))
        _run_missing(old.write, [shard for shard in shards if not old.found(shard).is_dir()])
        hashes = [*(old.found(shard) / HASHES for shard in shards), *hashes]
        cells += base.manifest["cells"]
    first = parts[0].source.index
    search = DuplicateSearch(hashes, n_ranges(cells), first, seed, folders["duplicates"], work.path)
    folders["duplicates"].mkdir(exist_ok=True)
    numbers = range(search.n_ranges)
    _run_missing(search.find, [number for number in numbers if not search.found(number).is_dir()])
    return search


def _run_missing(function: Callable[[int], Iterator[int]], missing: list[int]) -> None:
    for _ in run_items(function, missing):
        pass


def _write(
    store: Path, shards: ShardBuild, options: ReadOptions, base: Frame | None, progress: Progress | None
) -> None:
    """Write the frame of the store and the shards that are not done."""
    shards.entries.mkdir(exist_ok=True)
    if not shards.folder.is_dir():
        with committed(shards.folder, shards.work) as folder:
            start_store(folder, options.vocabulary)
            if base:
                take_frame(store, base, folder)
    missing = [bucket for bucket in range(shards.n_buckets) if not shards.entry(bucket).exists()]
    done = shards.n_buckets - len(missing)
    for step in run_items(shards.write, missing):
        done += step.finished
        if progress:
            progress("write shards", done, shards.n_buckets)


def _write_qc(path: Path, plans: list[SourcePlan], reports: list[PartReport]) -> None:
    tables = [report.histograms.to_table(plan.name) for plan, report in zip(plans, reports, strict=True)]
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


@contextmanager
def _leaving_what_is_done(work: WorkFolder) -> Iterator[None]:
    """Where the block fails, say how to go on; remove the folder where nothing is done."""
    try:
        yield
    except BaseException:
        if work.is_empty():
            work.remove()
        else:
            warnings.warn(
                f"what is done of this ingest stays in {work.path}: the same command goes on from there; remove "
                "that folder to discard it.",
                UserWarning,
                stacklevel=4,
            )
        raise
