"""Inline SVG plots whose colours are CSS classes of the page, so that they follow its light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH = 760
LABEL_WIDTH = 330  # room for a row's name left of its bar
ROW_HEIGHT = 30
PLOT_HEIGHT = 260
MARGIN = 56


def ratio_chart(rows: Sequence[dict[str, Any]]) -> str:
    """Bars of ``ratio`` on a log2 axis with a line at 1 (as fast as the peer) and a tick at each row's bar.

    ``rows`` are rows of a result file; those without a ratio are left out. Empty text if none has one.
    """
    rows = [row for row in rows if row["ratio"] is not None]
    if not rows:
        return ""
    figures = [row["ratio"] for row in rows] + [_bar(row) for row in rows if _bar(row) is not None]
    low = min(-1, math.floor(math.log2(min(figures))))
    high = max(2, math.ceil(math.log2(max(figures))))

    def x_of(ratio: float) -> float:
        return LABEL_WIDTH + (math.log2(ratio) - low) / (high - low) * (WIDTH - LABEL_WIDTH - 60)

    bottom = ROW_HEIGHT * len(rows) + 8
    parts = []
    for power in range(low, high + 1, max(1, (high - low) // 8)):
        style = "one" if power == 0 else "grid"
        x, name = x_of(2.0**power), f"{2**power}x" if power >= 0 else f"1/{2**-power}"
        parts.append(f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 16, name, "tick", "middle"))
    for index, row in enumerate(rows):
        y = index * ROW_HEIGHT + 8
        left, right = sorted((x_of(1.0), x_of(row["ratio"])))
        side = "ahead" if row["ratio"] >= 1 else "behind"
        width = max(right - left, 1.0)
        parts.append(_text(LABEL_WIDTH - 10, y + 14, _short(row["what"]), "name", "end", row["what"]))
        parts.append(
            f'<rect class="{side}" x="{left:.1f}" y="{y}" width="{width:.1f}" height="18" rx="2">'
            f"<title>{escape(row['what'])}: {row['ratio']:.3g}x {escape(row['peer'] or '')}</title></rect>"
        )
        parts.append(_text(right + 6, y + 14, f"{row['ratio']:.2f}x", "value", "start"))
        bar = _bar(row)
        if bar is not None:
            x = x_of(bar)
            parts.append(f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 4}" y2="{y + 22}"/>')
    return _figure(parts, bottom + 24, "how many times better than the peer; the dashed tick is the bar")


def line_chart(curve: dict[str, Any]) -> str:
    """Lines of one ``curves`` entry of a result file, log2 x axis when x spans more than a factor of 8."""
    points = [tuple(point) for line in curve["lines"].values() for point in line]
    if not points:
        return ""
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_high = _round_up(max(y for _, y in points))
    log_x = x_low > 0 and x_high / x_low > 8

    def x_of(x: float) -> float:
        scaled = (
            math.log2(x / x_low) / math.log2(x_high / x_low)
            if log_x
            else (x - x_low) / ((x_high - x_low) or 1)
        )
        return MARGIN + scaled * (WIDTH - 2 * MARGIN)

    def y_of(y: float) -> float:
        return PLOT_HEIGHT - y / y_high * (PLOT_HEIGHT - 16)

    parts = []
    for step in range(5):
        value = y_high * step / 4
        y = y_of(value)
        parts.append(f'<line class="grid" x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(MARGIN - 6, y + 4, f"{value:.3g}", "tick", "end"))
    ticks = sorted({x for x, _ in points})
    parts.extend(_text(x_of(x), PLOT_HEIGHT + 18, f"{x:,.0f}", "tick", "middle") for x in ticks)
    for number, (name, line) in enumerate(curve["lines"].items()):
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line)
        parts.append(f'<polyline class="line line{number % 4}" points="{path}"/>')
        parts.extend(
            f'<circle class="dot dot{number % 4}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="4">'
            f"<title>{escape(name)}: {y:.4g} at {x:,.0f}</title></circle>"
            for x, y in line
        )
        legend_y = PLOT_HEIGHT + 62 + 20 * number
        parts.append(f'<circle class="dot dot{number % 4}" cx="{MARGIN + 4}" cy="{legend_y - 4}" r="4"/>')
        parts.append(_text(MARGIN + 16, legend_y, name, "name", "start"))
    parts.append(_text(WIDTH / 2, PLOT_HEIGHT + 38, curve["x_label"], "tick", "middle"))
    parts.append(_text(MARGIN, 10, curve["y_label"], "tick", "start"))
    return _figure(parts, PLOT_HEIGHT + 50 + 20 * len(curve["lines"]) + 8, curve["title"])


def _bar(row: dict[str, Any]) -> float | None:
    """The bar on a row's ratio, whichever side it bounds."""
    bar: float | None = next(iter(row["bar"].values())) if row["bar"] else None
    return bar


def _round_up(value: float) -> float:
    """The next of 1, 2, 4 and 8 times a power of ten, so that quarters of the axis have short names."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value)


def _short(text: str, limit: int = 46) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _text(x: float, y: float, text: str, style: str, anchor: str, hover: str = "") -> str:
    title = f"<title>{escape(hover)}</title>" if hover else ""
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{title}{escape(text)}</text>'
    )


def _figure(parts: Sequence[str], height: float, caption: str) -> str:
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(caption)}">'
        f"{''.join(parts)}</svg><figcaption>{escape(caption)}</figcaption></figure>"
    )
