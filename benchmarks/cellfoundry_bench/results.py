"""What a suite hands back: rows of numbers, each with its unit, its peer and its bar, and curves to plot."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Met = bool | Literal["not measured"] | None


@dataclass(frozen=True)
class Row:
    """One measured quantity, or one that this machine could not measure (``value`` None, ``note`` says why).

    Attributes:
        what: the quantity, in words.
        value: our figure in ``unit``; None where nothing was measured.
        unit: unit of ``value`` and ``peer_value``, e.g. ``cells/s``.
        peer: what it is compared with, in words.
        peer_value: the peer's figure, measured in the same run.
        ratio: how many times better ours is than the peer's; above 1 is better whatever the unit.
        ratio_range: lowest and highest ratio of the single rounds.
        bar: the figure to reach, e.g. ``1.3``; applies to ``ratio`` where a peer is named, else to ``value``.
        bar_is: whether the bar is a floor or a ceiling.
        note: what a reader must know beside the number.
    """

    what: str
    value: float | None
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    ratio_range: tuple[float, float] | None = None
    bar: float | None = None
    bar_is: Literal["at least", "at most"] = "at least"
    note: str = ""

    @property
    def met(self) -> Met:
        """Whether the bar is reached; None without a bar, "not measured" without a figure."""
        figure = self.ratio if self.peer is not None else self.value
        if figure is None:
            return "not measured"
        if self.bar is None:
            return None
        return figure >= self.bar if self.bar_is == "at least" else figure <= self.bar

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``bar`` becomes ``{"at least": 1.3}`` or None, ``met`` is added."""
        record = asdict(self)
        bar_is = record.pop("bar_is")
        record["bar"] = None if self.bar is None else {bar_is: self.bar}
        return record | {"met": self.met}


@dataclass(frozen=True)
class Curve:
    """Lines over one axis for the report; ``lines`` maps a name to its (x, y) points, x ascending, ``levels`` to a
    y that holds for every x.
    """

    title: str
    x_label: str
    y_label: str
    lines: dict[str, list[tuple[float, float]]]
    levels: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteResult:
    """Everything one suite measured."""

    rows: list[Row]
    curves: list[Curve] = field(default_factory=list)
