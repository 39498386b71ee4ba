"""What an annotation run came to: every row of the few-shot curve, and the best probe in detail.

Legend: K classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from cellfoundry_tasks.annotate.calibration import Reliability
from cellfoundry_tasks.annotate.config import AnnotateConfig
from cellfoundry_tasks.annotate.other_cells import Difference
from cellfoundry_tasks.intervals import Interval, interval

Kind = Literal["model", "random", "baseline", "tuned", "trivial"]


@dataclass(frozen=True)
class Row:
    """One way to annotate, judged on the splits of all rows.

    Attributes:
        key: short name.
        name: for people.
        kind: whose say it is.
        macro_f1: shot -> a score for each seed.
        accuracy: shot -> a score for each seed.
        above_counts: shot -> by how much its macro-F1 is above that of the counts' PCA, and that difference's interval
            over other training and test cells.
    """

    key: str
    name: str
    kind: Kind
    macro_f1: dict[str, list[float]]
    accuracy: dict[str, list[float]]
    above_counts: dict[str, Difference]

    def interval(self, metric: str, shot: str) -> Interval:
        """Mean and 95 % interval of "macro_f1" or "accuracy"."""
        return interval(getattr(self, metric)[shot])


@dataclass(frozen=True)
class Detail:
    """The model's best probe at one shot, over the test cells of all seeds.

    Attributes:
        shot: training cells a class.
        probe: key of its row.
        chosen: key -> macro-F1 by cross-validation within the training cells, by which it was chosen.
        f1: class -> F1 of the probe and of the counts' PCA.
        confusion: cells of each true class (rows) that got each class (columns), K x K.
        raw: reliability of the logistic regression's own probabilities.
        calibrated: after temperature scaling within the training cells.
        temperature: mean over seeds.
    """

    shot: str
    probe: str
    chosen: dict[str, float]
    f1: dict[str, tuple[float, float]]
    confusion: tuple[tuple[int, ...], ...]
    raw: Reliability
    calibrated: Reliability
    temperature: float


@dataclass(frozen=True)
class Evaluation:
    """A finished run.

    Attributes:
        config: what was asked for.
        source: name of the cells.
        classes: class -> labelled cells.
        heldout: cells that a column holds out; None where test cells are drawn.
        left_out: a phrase for every reason that cells, or the model's expression, were left out.
        scarce: shot -> classes with fewer training cells, and how many they have.
        rows: the few-shot curve.
        detail: of the middle shot.
        model: facts of the model.
        device: where it ran.
        seconds: wall time of steps.
    """

    config: AnnotateConfig
    source: str
    classes: dict[str, int]
    heldout: int | None
    left_out: tuple[str, ...]
    scarce: dict[str, dict[str, int]]
    rows: tuple[Row, ...]
    detail: Detail
    model: dict[str, Any]
    device: str
    seconds: dict[str, float]

    @property
    def shots(self) -> list[str]:
        """Labels of the shots, in order."""
        return [str(shot) for shot in self.config.shots]

    def row(self, key: str) -> Row:
        """The row of that key; KeyError where there is none."""
        return {row.key: row for row in self.rows}[key]

    def record(self) -> dict[str, Any]:
        """All of it as JSON's types, and every row's intervals."""
        rows = [
            asdict(row)
            | {
                "intervals": {
                    metric: {shot: asdict(row.interval(metric, shot)) for shot in self.shots}
                    for metric in ("macro_f1", "accuracy")
                }
            }
            for row in self.rows
        ]
        found = asdict(self) | {"config": self.config.model_dump(mode="json"), "rows": rows}
        return {"task": "annotate"} | found

    def __str__(self) -> str:
        """One line for people."""
        shot = self.shots[0]
        own, pca = self.rows[0], self.row("counts")
        return (
            f"macro-F1 at {shot} cells a class: {own.interval('macro_f1', shot).mean:.3f} ({own.name}), "
            f"{pca.interval('macro_f1', shot).mean:.3f} ({pca.name}); {sum(self.classes.values()):,} cells, "
            f"{len(self.classes)} classes, {self.config.seeds} seeds"
        )
