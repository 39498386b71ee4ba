"""The report of the few-shot curve."""

from __future__ import annotations

from collections.abc import Sequence

from cellfoundry_bench.confusion_figure import confusion_matrix
from cellfoundry_bench.tasks.annotate_facts import UNLIKE_PUBLISHED, model_rows
from cellfoundry_bench.tasks.annotate_figures import few_shot_curves, reliability_plot
from cellfoundry_bench.tasks.page import MORE_CELLS, Section, page
from cellfoundry_tasks.annotate.other_cells import ROUNDS, Difference
from cellfoundry_tasks.annotate.result import Detail, Evaluation
from cellfoundry_tasks.annotate.tuning import STOPPING_SHARE

QUESTION = (
    "How many labelled cells does a classifier need to name the rest? Every row below learned from the same "
    "few cells of "
    "each class and is judged on the same other cells."
)


def annotation_page(result: Evaluation, command: str) -> str:
    """The page of a finished run; ``command`` is how it was asked for."""
    return page(
        f"Cell annotation: {result.source}",
        QUESTION,
        _tiles(result),
        [
            _curve(result),
            _scores(result, "macro_f1"),
            _above_counts(result),
            _scores(result, "accuracy"),
            *_detail(result),
        ],
        _facts(result, command),
    )


def _tiles(result: Evaluation) -> list[tuple[str, str]]:
    shot = result.shots[0]
    first = result.rows[0].key
    named = [row for row in result.rows if row.key in (first, "counts", f"random_{first}")]
    return [
        *(
            (f"{row.interval('macro_f1', shot).mean:.3f}", f"macro-F1 at {shot} a class, {row.name}")
            for row in named
        ),
        (f"{sum(result.classes.values()):,}", f"labelled cells of {len(result.classes)} classes"),
    ]


def _curve(result: Evaluation) -> Section:
    tested = (
        f"the {result.heldout:,} cells held out by obs column {result.config.heldout_column!r} of all seeds alike"
        if result.heldout is not None
        else f"{100 * result.config.test_share:.0f} % of each class, drawn anew for each seed"
    )
    one_draw = (
        " With all training cells there is one draw, and no interval." if result.heldout is not None else ""
    )
    return Section(
        "Few-shot curve",
        f"Mean and 95 % interval (Student's t) over {result.config.seeds} seeds, each with its own training cells; "
        f"tested on {tested}. The intervals are of other training cells alone, and somewhat too narrow, since seeds "
        f"share cells; what other test cells would change is said under the macro-F1.{one_draw} "
        f"{_verdict(result)}",
        (few_shot_curves(result),),
    )


def _verdict(result: Evaluation) -> str:
    """The bar, seed by seed: the splits are the same, so the differences are paired."""
    shot, parts = result.shots[0], []
    pca = result.row("counts")
    for row in result.rows:
        if row.kind == "model":
            gap = [own - other for own, other in zip(row.macro_f1[shot], pca.macro_f1[shot], strict=True)]
            mean = sum(gap) / len(gap)
            parts.append(
                f"{row.name} {'above' if mean > 0 else 'below'} it by {abs(mean):.3f}, "
                f"higher in {sum(g > 0 for g in gap)} of {len(gap)} seeds"
            )
    there = f"{pca.name} ({pca.interval('macro_f1', shot).mean:.3f})"
    return f"Macro-F1 at {shot} cells a class beside {there}: {'; '.join(parts)}."


def _scores(result: Evaluation, metric: str) -> Section:
    rows = [[row.name, *(str(row.interval(metric, shot)) for shot in result.shots)] for row in result.rows]
    heading = {"macro_f1": "Macro-F1", "accuracy": "Accuracy"}[metric]
    text = {
        "macro_f1": "All rows but CellTypist, fine-tuning and the commonest class are logistic regressions with "
        f"one penalty (C = {result.config.regularisation:g}) on features of total variance 1, never whitened. "
        "Expression is the model's output, brought to 10,000 counts a cell. Its axes, and those of “counts, all "
        "cells”, are of all these cells without their labels; “counts, training cells” knows the training cells alone. "
        "“..., counts” sets the model's components beside the counts' own. CellTypist sees 2,000 highly "
        "variable genes of all cells, with which few cells taught it more than with all genes. The penalty, the 4,000 "
        "genes and CellTypist's genes were chosen on Baron's pancreas cells and PBMC 3k, so on these two they are no "
        "blind choice, for baselines as for the model. Random rows are of the "
        "model's form with weights that learned nothing.",
        "accuracy": "Share of test cells that get their class; common classes weigh more.",
    }[metric]
    if metric == "macro_f1":
        text += _tuned(result) + _scarce(result)
    return Section(
        heading,
        text,
        columns=["", *(shot if shot == "all" else f"{shot} a class" for shot in result.shots)],
        rows=rows,
        strong=frozenset(number for number, row in enumerate(result.rows) if row.kind == "model"),
    )


def _above_counts(result: Evaluation) -> Section:
    pca = result.row("counts").name
    return Section(
        f"Macro-F1 above {pca}",
        "In hundredths: mean difference over the seeds, and its 95 % interval when training and test cells are drawn "
        f"again, both (a bootstrap of {ROUNDS} rounds, within each class): what other cells of the same kind could "
        "have shown. "
        f"{_one_draw(result)}An interval with 0 in it settles nothing.",
        columns=["", *(shot if shot == "all" else f"{shot} a class" for shot in result.shots)],
        rows=[
            [row.name, *(_difference(row.above_counts[shot]) for shot in result.shots)]
            for row in result.rows
            if row.key != "counts"
        ],
        strong=frozenset(number for number, row in enumerate(result.rows) if row.kind == "model"),
    )


def _one_draw(result: Evaluation) -> str:
    if "all" not in result.shots or result.heldout is None:
        return ""
    return 'With "all" there is one draw of training cells, so the interval is of other test cells alone. '


def _difference(found: Difference) -> str:
    mean, low, high = (f"{100 * value:+.1f}" for value in found)
    return f"{mean}\n({low} to {high})"


def _tuned(result: Evaluation) -> str:
    if not result.config.tune:
        return ""
    return (
        f" Fine-tuning holds {100 * STOPPING_SHARE:.0f} % of the training cells back to find the number of epochs, "
        "then learns anew from all of them for so many."
    )


def _scarce(result: Evaluation) -> str:
    parts = [
        f"at {shot} a class {', '.join(f'{name} ({cells})' for name, cells in scarce.items())}"
        for shot, scarce in result.scarce.items()
        if scarce
    ]
    return (
        f" Classes that have fewer training cells and give all of them: {'; '.join(parts)}." if parts else ""
    )


def _detail(result: Evaluation) -> list[Section]:
    detail = result.detail
    name, classes = result.row(detail.probe).name, list(result.classes)
    at = f"at {detail.shot} cells a class" if detail.shot != "all" else "with all training cells"
    chosen = "; ".join(f"{result.row(key).name} {score:.3f}" for key, score in detail.chosen.items())
    return [
        Section(
            f"Which cells are mistaken, {at}",
            f"{name}, over the test cells of all seeds: how many of each class (rows) got each class, shaded by their "
            "share of the row. This probe is shown because cross-validation within the training cells puts it first "
            f"(macro-F1 {chosen}).",
            (confusion_matrix(detail.confusion, classes),),
        ),
        Section(
            f"What its confidence is worth, {at}",
            "Test cells by the probability of the class that they got. Temperature scaling divides the log-odds by one "
            f"number (here {detail.temperature:.2f} in the mean over seeds), found by cross-validation within the "
            "training cells. On the dotted line confidence is what it says.",
            (reliability_plot(detail.raw, detail.calibrated),),
            columns=("Confidence after scaling", "Cells", "Called rightly"),
            rows=_bins(detail),
        ),
        Section(
            f"F1 of each class, {at}",
            "Over the test cells of all seeds together.",
            columns=("Class", "Labelled cells", name, result.row("counts").name),
            rows=[
                [label, f"{result.classes[label]:,}", f"{own:.3f}", f"{other:.3f}"]
                for label, (own, other) in detail.f1.items()
            ],
        ),
    ]


def _bins(detail: Detail) -> list[list[str]]:
    found = detail.calibrated
    return [
        [f"{confidence:.3f}", f"{cells:,}", f"{accuracy:.3f}"]
        for confidence, cells, accuracy in zip(found.confidence, found.cells, found.accuracy, strict=True)
    ]


def _facts(result: Evaluation, command: str) -> list[tuple[str, str]]:
    config = result.config
    left: Sequence[str] = result.left_out or ["none"]
    return [
        (
            "Cells",
            f"{result.source}: {sum(result.classes.values()):,} labelled by obs column {config.label!r}",
        ),
        ("Left out", "; ".join(left)),
        (
            "Seen in pretraining",
            f"told by obs column {config.heldout_column!r}: test cells were held out"
            if config.heldout_column
            else "not told (--heldout-column): the model may have been pretrained on test cells, without labels",
        ),
        *model_rows(result.model, result.device),
        ("Target depth", config.target),
        ("Seeds", ", ".join(map(str, range(config.seeds)))),
        ("Seconds", ", ".join(f"{name} {seconds:,.0f}" for name, seconds in result.seconds.items())),
        ("Command", command),
        MORE_CELLS,
        ("Published figures", UNLIKE_PUBLISHED),
    ]
