"""The report of a fine-tuning run: scores, confusion matrix and learning curve as one HTML page."""

from __future__ import annotations

from cellfoundry.report.finetune_figures import predicted_against_true, validation_curve
from cellfoundry.report.template import render
from cellfoundry_bench.confusion_figure import confusion_matrix
from cellfoundry_training.finetune.result import Finetuned
from cellfoundry_training.finetune.scores import ClassificationScores

TUNED = {
    "head": "the head alone",
    "last": "the head and the encoder's last layers",
    "full": "the head and the whole encoder",
    "lora": "the head and low-rank adapters, merged into the weights",
}


def page(result: Finetuned) -> str:
    """The page's text, which needs nothing from outside."""
    scores = result.scores
    if isinstance(scores, ClassificationScores):
        figure = confusion_matrix(scores.confusion, result.head.classes)
        classes = scores.classes
    else:
        figure = predicted_against_true(result.test_true, result.test_predicted, result.config.label)
        classes = ()
    return render(
        "finetune.html.j2",
        label=result.config.label,
        is_classification=isinstance(scores, ClassificationScores),
        tiles=[*_score_tiles(result), *_size_tiles(result)],
        result_svg=figure,
        curve_svg=validation_curve(result.epochs),
        classes=classes,
        best=result.best,
        epochs=len(result.epochs),
        stopped_early=len(result.epochs) < result.config.max_epochs,
        cells=result.cells,
        left_out=result.left_out(),
        facts=[
            ("Cells", result.source),
            ("Model before", result.base_sha256),
            ("Learned", f"{TUNED[result.config.tune]}: {result.parameters:,} parameters"),
            ("Device", result.device),
            ("Seconds", ", ".join(f"{name} {value:,.1f}" for name, value in result.seconds.items())),
        ],
        config=result.config.model_dump(),
    )


def _score_tiles(result: Finetuned) -> list[tuple[str, str]]:
    scores, cells = result.scores, f"of {result.cells.test:,} held-out cells"
    if isinstance(scores, ClassificationScores):
        return [
            (
                f"{100 * scores.accuracy:.1f} %",
                f"{cells} right; calling all the commonest class: {100 * scores.majority_accuracy:.1f} %",
            ),
            (f"{scores.macro_f1:.3f}", f"macro-F1 over {len(scores.classes)} classes"),
            (f"{scores.auroc:.3f}", "AUROC, each class against the rest, averaged"),
        ]
    pearson = "none" if scores.pearson is None else f"{scores.pearson:.3f}"
    return [
        (pearson, f"Pearson correlation {cells}"),
        (f"{scores.r2:.3f}", "R2; the mean of these cells gives 0"),
        (f"{scores.mae:.4g}", "mean absolute error, in the label's unit"),
    ]


def _size_tiles(result: Finetuned) -> list[tuple[str, str]]:
    return [
        (f"{result.cells.train:,}", f"cells trained, {result.cells.validation:,} more said when to stop"),
        (f"{sum(result.seconds.values()):,.0f} s", f"on {result.device}"),
    ]
