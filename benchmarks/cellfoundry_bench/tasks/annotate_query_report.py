"""The report of labels for new cells."""

from __future__ import annotations

from collections.abc import Sequence

from cellfoundry_bench.tasks.annotate_facts import UNLIKE_PUBLISHED, model_rows
from cellfoundry_bench.tasks.annotate_figures import reliability_plot, share_bars
from cellfoundry_bench.tasks.page import Section, page
from cellfoundry_tasks.annotate.query import CONFIDENCE, LIKELIEST, UNKNOWN, QueryResult
from cellfoundry_tasks.annotate.vectors import KEPT_GENES

QUESTION = (
    "Which of the reference's classes is each new cell, how sure is that, and which cells are none of them? What the "
    "answers are worth is measured on reference cells that were held out, and on classes that were."
)
MANY_UNKNOWN = 0.3


def query_page(result: QueryResult, command: str) -> str:
    """The page of a finished run; ``command`` is how it was asked for."""
    return page(
        f"Cell annotation: {result.query} from {result.source}",
        QUESTION,
        _tiles(result),
        [_cells(result), _reliability(result), *_novelty(result)],
        _facts(result, command),
    )


def _tiles(result: QueryResult) -> list[tuple[str, str]]:
    judged = result.judgement
    tiles = [
        (f"{len(result.columns):,}", "new cells"),
        (f"{100 * result.unknown_share:.1f} %", "of them unknown"),
        (f"{judged.macro_f1:.3f}", f"macro-F1 on {judged.test:,} held-out reference cells"),
        (f"{judged.calibrated.expected_error:.3f}", "calibration error (ECE) on them"),
    ]
    if judged.left_out:
        caught = sum(each.caught for each in judged.left_out) / len(judged.left_out)
        tiles.append(
            (
                f"{100 * caught:.0f} %",
                "of a class left out of the reference called unknown, mean over classes",
            )
        )
    return tiles


def _cells(result: QueryResult) -> Section:
    columns, rows = result.columns, []
    for name, size in result.classes.items():
        found = columns[columns[LIKELIEST] == name]
        known = found[~found[UNKNOWN]]
        rows.append(
            [
                name,
                f"{size:,}",
                f"{len(known):,}",
                f"{len(found) - len(known):,}",
                f"{found[CONFIDENCE].median():.3f}" if len(found) else "",
            ]
        )
    text = (
        "A new cell gets the likeliest class, and is called unknown where its confidence is below "
        f"{result.limits.confidence:.3f} or its Mahalanobis distance to the nearest class above "
        f"{result.limits.distance:.3f}. These limits keep {100 * result.config.known_share:g} % of reference cells in "
        "cross-validation."
    )
    if result.unknown_share > MANY_UNKNOWN:
        text += (
            f" {100 * result.unknown_share:.0f} % unknown is more than novel types usually explain: the new cells may "
            "differ from the reference in protocol or condition. Map them onto it first (task map)."
        )
    return Section(
        "The new cells",
        text,
        columns=("Class", "Reference cells", "New cells", "Unknown, likeliest this", "Median confidence"),
        rows=rows,
    )


def _reliability(result: QueryResult) -> Section:
    judged = result.judgement
    return Section(
        "What the confidence is worth",
        f"An annotator of {judged.train:,} reference cells on the other {judged.test:,}: "
        f"{100 * judged.accuracy:.1f} % called rightly, macro-F1 {judged.macro_f1:.3f}; it keeps "
        f"{100 * judged.kept:.1f} % as known, and of these {100 * judged.kept_accuracy:.1f} % are called rightly. "
        f"Temperature scaling divides the log-odds by one number ({result.temperature:.2f} for the labels above), "
        "found by cross-validation. New cells of another protocol or "
        "condition can be less sure than this says.",
        (reliability_plot(judged.raw, judged.calibrated),),
    )


def _novelty(result: QueryResult) -> list[Section]:
    left_out = result.judgement.left_out
    if not left_out:
        return []
    return [
        Section(
            "Cells of a class that the reference lacks",
            "Each class in turn is taken out of the reference, and an annotator of the other classes, whose "
            "axes, probe and "
            "limits have not seen it, is asked about its cells. Caught: called unknown. Lost: held-out "
            "cells of the other "
            f"classes called unknown. The {KEPT_GENES:,} genes whose expression is used were chosen before, over all "
            "reference cells without labels.",
            (
                share_bars(
                    [each.name for each in left_out],
                    [each.caught for each in left_out],
                    [each.lost for each in left_out],
                ),
            ),
            columns=(
                "Class left out",
                "Cells",
                "Caught",
                "By confidence alone",
                "Lost of the others",
                "Else mostly called",
            ),
            rows=[
                [
                    each.name,
                    f"{each.cells:,}",
                    f"{100 * each.caught:.0f} %",
                    f"{100 * each.caught_by_confidence:.0f} %",
                    f"{100 * each.lost:.1f} %",
                    f"{each.called[0]} ({100 * each.called[1]:.0f} %)" if each.called[1] else "",
                ]
                for each in left_out
            ],
        )
    ]


def _facts(result: QueryResult, command: str) -> list[tuple[str, str]]:
    left: Sequence[str] = result.left_out or ["none"]
    chosen = "as asked for"
    if result.few_shot:
        scores = ", ".join(f"{name} {score:.3f}" for name, score in result.few_shot.items())
        chosen = (
            f"the best of the reference's own cells at {result.config.shots[0]} a class over "
            f"{result.config.seeds} draws "
            f"(macro-F1 {scores})"
        )
    return [
        (
            "Reference",
            f"{result.source}: {sum(result.classes.values()):,} cells, obs column {result.config.label!r}",
        ),
        ("Left out", "; ".join(left)),
        ("Predicted from", f"the model's {result.features}, {chosen}"),
        *model_rows(result.model, result.device),
        ("Target depth", result.config.target),
        ("Seconds", f"{result.seconds:,.0f}"),
        ("Command", command),
        ("Published figures", UNLIKE_PUBLISHED),
    ]
