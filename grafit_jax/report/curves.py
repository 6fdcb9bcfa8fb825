"""Page section: the logged metrics over the epochs, one SVG chart per metric."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from grafit_jax.config import LAYERS
from grafit_jax.report.markup import Section, text
from grafit_jax.report.metrics import heading
from grafit_jax.report.shown import Run, Shown
from grafit_jax.runs.results import HEADLINE, split_key

# Keys of the log without a chart.
_NOT_DRAWN = ("step", "epoch", "seconds", "data_wait_seconds")
_WIDTH, _HEIGHT = 320, 160
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 308, 10, 124


class Line(NamedTuple):
    """A line of a chart: run number (for the style .line-NUMBER), run name, epochs x and finite values y."""

    number: int
    name: str
    x: Sequence[float]
    y: Sequence[float]


def section(shown: Shown) -> Section:
    """Makes a chart of each logged value, and of the headline metrics if they were evaluated more than once."""
    charts: dict[str, list[Line]] = {}
    for number, run in enumerate(shown.runs):
        for key, points in _logged(run).items():
            charts.setdefault(key, []).append(Line(number, run.name, [*points], [*points.values()]))
    charts = dict(sorted(charts.items(), key=lambda item: item[0] != "loss"))
    training = {key.replace("_", " "): lines for key, lines in charts.items() if not key.startswith("eval/")}
    evaluation = {
        _title(key): lines
        for key, lines in sorted(charts.items(), key=lambda item: [*LAYERS, ""].index(_layer(item[0])))
        if key.startswith("eval/") and split_key(key)[1] in (*HEADLINE, "top1")
        if any(len(line.x) > 1 for line in lines)
    }
    sample = (
        '<svg viewBox="0 0 30 8" aria-hidden="true"><line class="line line-{}" x1="0" x2="30" y1="4" y2="4"/></svg>'
    )
    names = "".join(f"<li>{sample.format(number)}{text(run.name)}</li>" for number, run in enumerate(shown.runs))
    once = """<p>Evaluated once, at the end: see the table above. Set <code>--config.eval.every_epochs=5</code>
to evaluate every 5 epochs.</p>"""
    return Section(
        "curves",
        "Learning curves",
        (f'<ul class="legend">{names}</ul>' if len(shown.runs) > 1 else "")
        + f"<h3>Training</h3>{_charts(training) or '<p>No metrics were logged.</p>'}"
        + f"<h3>Evaluation</h3>{_charts(evaluation) or once}",
    )


def _logged(run: Run) -> dict[str, dict[float, float]]:
    """Returns name -> epoch -> value. Adds the layer to the headline metrics, which the log omits."""
    epochs = {line["step"]: line["epoch"] for line in run.log if 0 < line.get("epoch", 0) < math.inf}
    found: dict[str, dict[float, float]] = {}
    for line in run.log:
        for key, value in line.items():
            if key not in _NOT_DRAWN and line["step"] in epochs and math.isfinite(value):
                path, metric = split_key(key)
                if path[:1] == ["eval"] and _layer(key) == "" and metric in HEADLINE:
                    key = "/".join(("eval", run.layer, *path[1:], metric))
                found.setdefault(key, {})[epochs[line["step"]]] = value
    return found


def _layer(key: str) -> str:
    return next((part for part in key.split("/") if part in LAYERS), "")


def _title(key: str) -> str:
    """Returns the title of a chart: metric, level (except the finest) and layer."""
    *path, metric = key.split("/")[1:]
    return ", ".join((heading(metric), *(part for part in path if part not in LAYERS), *filter(None, [_layer(key)])))


def _charts(charts: Mapping[str, Sequence[Line]]) -> str:
    drawn = "".join(chart(title, lines) for title, lines in charts.items())
    return drawn and f'<div class="charts">{drawn}</div>'


def chart(title: str, lines: Sequence[Line]) -> str:
    """Returns a figure of lines over the epochs; each line has at least one point."""
    low, high = min(min(line.y) for line in lines), max(max(line.y) for line in lines)
    ticks = steps(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    last = max(max(line.x) for line in lines)
    epochs = [tick for tick in steps(0.0, last) if tick <= last and tick == round(tick)]

    def across(x: float) -> str:
        return f"{_LEFT + (_RIGHT - _LEFT) * x / last:.1f}"

    def up(y: float, below: float = 0) -> str:
        return f"{_BOTTOM - (_BOTTOM - _TOP) * (y - low) / (high - low) + below:.1f}"

    def polyline(line: Line) -> str:
        points = " ".join(f"{across(x)},{up(y)}" for x, y in zip(line.x, line.y, strict=True))
        dot = f'cx="{across(line.x[-1])}" cy="{up(line.y[-1])}"'
        return (
            f'<polyline class="line line-{line.number}" points="{points}"/>'
            f'<circle class="dot line-{line.number}" {dot} r="3"/>'
        )

    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{up(t)}" y2="{up(t)}"/>'
        f'<text x="{_LEFT - 5}" y="{up(t, 3.5)}" text-anchor="end">{t:g}</text>'
        for t in ticks
    )
    drawn = "".join(map(polyline, lines))
    below = "".join(f'<text x="{across(t)}" y="{_BOTTOM + 14}" text-anchor="middle">{t:g}</text>' for t in epochs)
    description = f"{title}: " + "; ".join(
        f"{line.name} from {line.y[0]:.4g} in epoch {line.x[0]:g} to {line.y[-1]:.4g} in epoch {line.x[-1]:g}, "
        f"lowest {min(line.y):.4g}, highest {max(line.y):.4g}"
        for line in lines
    )
    return (
        f'<figure class="chart"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(description)}">'
        f'{grid}<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>'
        f'<line class="axis" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{_BOTTOM}"/>{below}{drawn}'
        f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">epoch</text></svg>'
        f"<figcaption>{text(title)}</figcaption></figure>"
    )


def steps(low: float, high: float, about: int = 4) -> list[float]:
    """Returns tick values that cover low..high, spaced by 1, 2 or 5 times a power of ten."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * times for times in (1, 2, 5, 10) if power * times * about >= span)
    first = math.floor(low / step)
    return [round(k * step, 12) for k in range(first, max(math.ceil(high / step), first + 1) + 1)]
