"""Downstream tasks with their reports: what ``cellfoundry task`` and ``cf.tasks`` run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellfoundry.task_outputs import check_sources_are_kept, report_folder, write_mapped

if TYPE_CHECKING:
    from anndata import AnnData

    from cellfoundry_tasks.annotate.query import QueryResult
    from cellfoundry_tasks.annotate.result import Evaluation
    from cellfoundry_tasks.enhance.run import Enhanced
    from cellfoundry_tasks.mapping import MapResult
    from cellfoundry_tasks.representation import Progress
    from cellfoundry_tasks.scaling.curves import Scaling


def annotate(
    data: AnnData | str | Path,
    model: str | Path,
    out: str | Path | None = None,
    *,
    layer: str | None = None,
    progress: Progress | None = None,
    command: str = "cf.tasks.annotate",
    **settings: Any,
) -> Evaluation:
    """How few labelled cells the model's probes need, beside their baselines.

    >>> cf.tasks.annotate(adata, "models/cell", "annotation", label="cell_type").row("expression").macro_f1

    Args:
        data: labelled raw counts: an AnnData, or a path that ``cellfoundry embed`` takes.
        model: model directory.
        out: folder for ``report.html`` and ``result.json``; None writes nothing.
        layer: matrix of an AnnData to read; by default the first with whole counts.
        progress: called with (label, done, total).
        command: what the report says that it was asked by.
        **settings: fields of ``AnnotateConfig``; ``label`` at least.

    Raises:
        DataError, ModelError, TaskError, TrainingError: one sentence on what to mend.
    """
    from cellfoundry_tasks.annotate.config import build_config
    from cellfoundry_tasks.annotate.evaluate import evaluate

    folder = None if out is None else report_folder(out)
    result = evaluate(data, model, build_config(settings), layer=layer, progress=progress)
    if folder is not None:
        from cellfoundry_bench.tasks.annotate_report import annotation_page
        from cellfoundry_bench.tasks.page import write_result

        write_result(folder, result.record(), annotation_page(result, command))
    return result


def annotate_query(
    query: AnnData | str | Path,
    reference: AnnData | str | Path,
    model: str | Path,
    out: str | Path | None = None,
    *,
    layer: str | None = None,
    progress: Progress | None = None,
    command: str = "cf.tasks.annotate_query",
    **settings: Any,
) -> QueryResult:
    """Label new cells from a labelled reference.

    >>> cf.tasks.annotate_query(adata, "reference.h5ad", "models/cell", label="cell_type")
    >>> adata.obs["cellfoundry_label"]

    An AnnData gets obs columns ``cellfoundry_label`` ("unknown" where no class fits), ``cellfoundry_likeliest``,
    ``cellfoundry_confidence`` and ``cellfoundry_unknown``; of a path a copy with them is written into ``out``.

    Args:
        query: raw counts of the new cells.
        reference: labelled raw counts.
        model: model directory.
        out: folder for ``report.html``, ``result.json`` and the copy; None writes nothing.
        layer: matrix of an AnnData to read; by default the first with whole counts.
        progress: called with (label, done, total).
        command: what the report says that it was asked by.
        **settings: fields of ``AnnotateConfig``; ``label`` at least.

    Raises:
        DataError, ModelError, ServingError, TaskError: one sentence on what to mend; ``query`` is unchanged then.
    """
    from anndata import AnnData

    from cellfoundry_serving.outputs.predictions import write_predictions
    from cellfoundry_tasks.annotate.config import build_config
    from cellfoundry_tasks.annotate.query import annotate_query as run_annotate_query

    copy, folder = None, None if out is None else report_folder(out)
    if folder is not None and not isinstance(query, AnnData):
        copy = folder / f"{Path(query).stem}.h5ad"
        check_sources_are_kept((query, reference), copy)
    result = run_annotate_query(
        query, reference, model, build_config(settings), layer=layer, progress=progress
    )
    if isinstance(query, AnnData):
        for name, column in result.columns.items():
            query.obs[name] = column.to_numpy() if column.dtype != "category" else column.array
    if folder is not None:
        from cellfoundry_bench.tasks.annotate_query_report import query_page
        from cellfoundry_bench.tasks.page import write_result

        text = query_page(result, command)
        folder.mkdir(parents=True, exist_ok=True)
        if copy is not None:
            weights = str(result.model.get("weights_sha256", ""))
            provenance = {"label": result.config.label, "reference": result.source, "model_sha256": weights}
            write_predictions(copy, query, result.columns[[]], result.columns, provenance)
        write_result(folder, result.record(), text)
    return result


def enhance(
    data: AnnData | str | Path,
    model: str | Path,
    out: str | Path,
    *,
    embedding_model: str | Path | None = None,
    layer: str | None = None,
    command: str = "",
    progress: Progress | None = None,
    **settings: Any,
) -> Enhanced:
    """Thin cells, let the model and its peers enhance them, and write ``report.html`` and ``result.json`` to ``out``.

    >>> cf.tasks.enhance(adata, "models/cell", "enhanced", label="cell_type", depths=(0.05, 0.1))

    Args:
        data: raw counts: an AnnData, or a path that ``cellfoundry embed`` takes.
        model: model directory; of official weights the part "gene".
        out: folder of the report.
        embedding_model: model directory that embeds instead, of official weights the part "rde".
        layer: matrix to read; by default the first with whole counts.
        command: shown in the report.
        progress: called with (label, done, total).
        **settings: fields of ``cellfoundry_tasks.enhance.config.EnhanceConfig``.

    Raises:
        DataError, ModelError, TaskError: one sentence on what to mend; nothing is written then.
    """
    from cellfoundry_bench.tasks.enhance_facts import record
    from cellfoundry_bench.tasks.enhance_report import report
    from cellfoundry_bench.tasks.page import write_result
    from cellfoundry_tasks.enhance.config import enhance_config
    from cellfoundry_tasks.enhance.run import enhance as run

    config = enhance_config(settings)
    folder = report_folder(out)
    result = run(data, model, config, embedding_model=embedding_model, layer=layer, progress=progress)
    write_result(folder, record(result), report(result, command))
    return result


def map_cells(
    *,
    model: str | Path,
    out: str | Path,
    label: str,
    data: AnnData | str | Path | None = None,
    batch: str | None = None,
    reference: AnnData | str | Path | None = None,
    query: AnnData | str | Path | None = None,
    layer: str | None = None,
    device: str = "auto",
    command: str = "",
    progress: Progress | None = None,
    **settings: Any,
) -> MapResult:
    """Join the batches of ``data``, or a query with a labelled reference, and carry labels over; see docs/tasks.md.

    >>> cf.tasks.map_cells(data=adata, batch="protocol", label="cell_line", model="models/cell", out="mapped")
    >>> cf.tasks.map_cells(reference=atlas, query=adata, label="cell_type", model="models/cell", out="mapped")

    Args:
        model: model directory.
        out: folder for ``report.html``, ``result.json`` and ``query.h5ad`` (a copy of the query with
            ``transferred_label``, ``transferred_confidence`` and the embedding) or, of one file, ``cells.h5ad``.
        label: obs column of the labels.
        data: raw counts of several batches, AnnData or path, with
        batch: the obs column that names them; or
        reference: labelled raw counts, and
        query: raw counts, with the column where it is to be judged by.
        layer: matrix to read; by default the first with whole counts.
        device: torch device; "auto" is CUDA where there is one.
        command: shown in the report.
        progress: called with (label, done, total).
        **settings: other fields of ``cellfoundry_tasks.mapping.MapConfig``.

    Raises:
        DataError, ModelError, ServingError, TaskError: one sentence on what to mend; nothing is written then.
    """
    from anndata import AnnData

    from cellfoundry_bench.tasks import mapping_report
    from cellfoundry_bench.tasks.page import write_result
    from cellfoundry_serving.outputs.h5ad import check_obs_is_written
    from cellfoundry_tasks.mapping import map_cells as run
    from cellfoundry_tasks.mapping.config import build_config

    config = build_config({"label": label, "batch": batch, **settings})
    folder = report_folder(out)
    copy = folder / ("cells.h5ad" if query is None else "query.h5ad")
    check_sources_are_kept((data, reference, query), copy)
    if isinstance(query, AnnData):
        check_obs_is_written(query)
    result = run(
        model,
        config,
        data=data,
        reference=reference,
        query=query,
        layer=layer,
        device=device,
        progress=progress,
    )
    write_result(folder, mapping_report.record(result), mapping_report.report(result, command))
    write_mapped(copy, result, query, layer)
    return result


def scaling(
    results: Sequence[str | Path], out: str | Path | None = None, *, command: str = "cf.tasks.scaling"
) -> list[Scaling]:
    """What more cells to learn from brought: scores of finished runs over the training cells of their models.

    >>> cf.tasks.scaling(["annotate-10", "annotate-30", "annotate-100"], "scaling")

    Args:
        results: folders that ``annotate`` or ``enhance`` wrote, with models of one shape on the same cells.
        out: folder for ``report.html`` and ``result.json``; None writes nothing.
        command: what the report says that it was asked by.

    Raises:
        TaskError: one sentence on which results cannot be on one curve; nothing is written then.
    """
    from cellfoundry_tasks.errors import TaskError
    from cellfoundry_tasks.scaling.curves import record
    from cellfoundry_tasks.scaling.curves import scaling as run

    folder = None if out is None else report_folder(out)
    for result in () if isinstance(results, str | Path) else results:
        if folder is not None and Path(result).resolve() == folder.resolve():
            raise TaskError(
                f"{folder}: holds one of the results, which the report would replace; give another folder"
            )
    curves = run(results)
    if folder is not None:
        from cellfoundry_bench.tasks.page import write_result
        from cellfoundry_bench.tasks.scaling_report import scaling_page

        write_result(folder, record(curves), scaling_page(curves, command))
    return curves
