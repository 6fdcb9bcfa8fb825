"""Curves as SVG, with axes and labels, drawn with the page's own colours."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from grafit_jax.report.markup import text

_WIDTH, _HEIGHT = 320, 160
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 308, 10, 124


class Line(NamedTuple):
    """A line of a chart: one run's values.

    Attributes:
      number: of the run; it is drawn by the style .line-NUMBER.
      name: of the run.
      x: epochs.
      y: values, as many, all finite.
    """

    number: int
    name: str
    x: Sequence[float]
    y: Sequence[float]


def chart(title: str, lines: Sequence[Line]) -> str:
    """A figure of lines over the epochs; every line has at least one point."""
    low, high = min(min(line.y) for line in lines), max(max(line.y) for line in lines)
    ticks = steps(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    last = max(max(line.x) for line in lines)
    epochs = [tick for tick in steps(0.0, last) if tick <= last and tick == round(tick)]

    def across(x: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * x / last

    def up(y: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (y - low) / (high - low)

    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{up(t):.1f}" y2="{up(t):.1f}"/>'
        f'<text x="{_LEFT - 5}" y="{up(t) + 3.5:.1f}" text-anchor="end">{t:g}</text>'
        for t in ticks
        if low <= t <= high
    )
    below = "".join(f'<text x="{across(t):.1f}" y="{_BOTTOM + 14}" text-anchor="middle">{t:g}</text>' for t in epochs)
    drawn = "".join(
        f'<polyline class="line line-{line.number}" points="{_points(line, across, up)}"/>'
        f'<circle class="dot line-{line.number}" cx="{across(line.x[-1]):.1f}" cy="{up(line.y[-1]):.1f}" r="3"/>'
        for line in lines
    )
    said = text(_said(title, lines))
    return (
        f'<figure class="chart"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}">'
        f'{grid}<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>'
        f'<line class="axis" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{_BOTTOM}"/>{below}{drawn}'
        f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">epoch</text></svg>'
        f"<figcaption>{text(title)}</figcaption></figure>"
    )


def steps(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers over low..high, which they enclose or nearly so: 1, 2 or 5 times a power of ten apart."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * times for times in (1, 2, 5, 10) if power * times * about >= span)
    first = math.floor(low / step)
    return [round(k * step, 12) for k in range(first, max(math.ceil(high / step), first + 1) + 1)]


def _points(line: Line, across, up) -> str:
    return " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in zip(line.x, line.y, strict=True))


def _said(title: str, lines: Sequence[Line]) -> str:
    """The chart in words."""
    of_lines = [
        f"{line.name} from {line.y[0]:.4g} in epoch {line.x[0]:g} to {line.y[-1]:.4g} in epoch {line.x[-1]:g}, "
        f"lowest {min(line.y):.4g}, highest {max(line.y):.4g}"
        for line in lines
    ]
    return f"{title}: {'; '.join(of_lines)}"
