"""The summary of a sweep, from the files of its runs: a table, best first, and a plot."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from study import layout

from grafit_jax.errors import UserError, did_you_mean
from grafit_jax.runs import results
from grafit_jax.runs.preemption import EXIT_PREEMPTED
from grafit_jax.runs.results import Result
from sweeps import runner
from sweeps.expansion import PLOT, Sweep, Values
from sweeps.runner import Standing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COUNTS = ("step", "queries_without_positive")  # not metrics
# Metrics that a table shows next to the one that orders it.
_BESIDE = {"map": "fine mAP", "recall@1": "R@1", "knn_top1": "fine k-NN"}


def check_metric(metric: str, sweep: Sweep) -> None:
    """Raises a UserError for a metric that no run of the sweep will have."""
    ks = sorted({k for point in sweep.points for k in point.config.eval.recall_at})
    known = ["map", "knn_top1", "top1", *(f"{side}recall@{k}" for side in ("", "gallery/") for k in ks)]
    known += results.CLUSTERS if any(point.config.eval.clusters for point in sweep.points) else ()
    if results.split_key(metric)[1] not in known:
        raise UserError(
            f"found --metric={metric}{did_you_mean(metric, known)}; expected one of {', '.join(known)}, "
            "optionally with the prefix of a level or layer, such as coarse/map."
        )


def conclude(sweep: Sweep, directory: pathlib.Path, names: Sequence[str], metric: str, *, stopped: bool) -> int:
    """Prints the table of the whole sweep and the state of incomplete points, and draws the plot.

    Returns:
      the exit status: 0 if the points `names` are complete; 1 if some failed and the sweep was not stopped; 75 if the
      sweep must be started again.
    """
    standings = {point.name: runner.standing(directory / point.name) for point in sweep.points}
    found = show(sweep, directory, standings, metric)
    for name, now in standings.items():
        if now.state != "complete":
            print(f"{name}: {now}")
    if found:
        draw(found, sweep.varying, metric).savefig(directory / PLOT, dpi=130)
        print(f"plot: {directory / PLOT}")
    states = {standings[name].state for name in names}
    if states <= {"complete"}:
        return 0
    return 1 if "failed" in states and not stopped else EXIT_PREEMPTED


@dataclasses.dataclass(frozen=True)
class Group:
    """The results of points that differ only in their seeds."""

    values: Values  # without the seed
    results: tuple[Result, ...]
    numbers: tuple[float, ...]  # the metric in percent, of the results that have it

    @property
    def mean(self) -> float:
        return float(np.mean(self.numbers)) if self.numbers else math.nan


def show(sweep: Sweep, directory: pathlib.Path, standings: Mapping[str, Standing], metric: str) -> list[Group]:
    """Prints the table of the complete points, if any, and returns its groups."""
    complete = [point for point in sweep.points if standings[point.name].state == "complete"]
    found = groups([(point.values, results.collect(directory / point.name)) for point in complete], metric)
    if found:
        print(f"\n{table(found, sweep.varying, metric)}\n")
    return found


def groups(collected: Sequence[tuple[Values, Result]], metric: str) -> list[Group]:
    """Groups points that differ only in their seeds, the best mean of `metric` first.

    Raises:
      UserError: no result has the metric.
    """
    known = dict.fromkeys(name for _, result in collected for name in result["metrics"] if not name.endswith(_COUNTS))
    if collected and metric not in known:
        raise UserError(
            f"found no metric {metric!r}{did_you_mean(metric, known)} in the results; expected --metric= one of "
            f"{', '.join(known)}."
        )
    by_values: dict[tuple[tuple[str, Any], ...], list[Result]] = {}
    for values, result in collected:
        base = {key: value for key, value in values.items() if key != "seed"}
        by_values.setdefault(tuple(sorted(base.items())), []).append(result)
    found = [
        Group(dict(base), tuple(of_base), tuple(100 * r["metrics"][metric] for r in of_base if metric in r["metrics"]))
        for base, of_base in by_values.items()
    ]
    return sorted(found, key=lambda group: -group.mean if group.numbers else math.inf)


def _apart(found: Sequence[Group], varying: Sequence[str]) -> list[str]:
    """Returns the keys whose values differ between these groups."""
    return [key for key in varying if len({str(group.values.get(key)) for group in found}) > 1]


def table(found: Sequence[Group], varying: Sequence[str], metric: str) -> str:
    """Renders the groups in Markdown: percent, mean ± standard deviation over the seeds.

    If the layers of their metrics differ, as with `grafit_plus`, a column names them.
    """
    keys = [key for key in _apart(found, varying) if key != "method"]
    columns = {metric: f"**{_BESIDE.get(metric, metric)}**"} | {k: v for k, v in _BESIDE.items() if k != metric}
    shown = [result | {"values": group.values} for group in found for result in group.results]
    headings = ["method", *(["layer"] if len({results.headline_layer(r["config"]) for r in shown}) > 1 else []), *keys]

    def name(result: Result) -> list[str]:
        known = {"method": f"`{result['method']}`", "layer": results.headline_layer(result["config"])}
        return [str((result["values"] | known).get(key, "")) for key in headings]

    return layout.markdown_table(shown, headings, name, columns)


def draw(found: Sequence[Group], varying: Sequence[str], metric: str) -> "Figure":
    """Draws lines over the only number that varies, or else a bar for each group; seeds are dots."""
    from matplotlib.figure import Figure  # slow to import

    drawn = [group for group in found if group.numbers]
    keys = _apart(drawn, varying)
    numeric = [key for key in keys if all(_is_number(group.values.get(key, 0)) for group in drawn)]
    title = f"{_BESIDE.get(metric, metric)}, in percent"
    if len(numeric) == 1 and all(numeric[0] in group.values for group in drawn):  # each group has a place on a line
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        _draw_lines(figure.subplots(), drawn, numeric[0], [key for key in keys if key != numeric[0]], title)
    else:
        figure = Figure(figsize=(7.2, 0.9 + 0.32 * len(drawn)), layout="constrained")
        _draw_bars(figure.subplots(), drawn, keys, title)
    return figure


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _label(group: Group, keys: Sequence[str]) -> str:
    return ", ".join(f"{key}={group.values[key]}" for key in keys if key in group.values)


def _draw_lines(ax, drawn: Sequence[Group], over: str, keys: Sequence[str], title: str) -> None:
    lines: dict[str, list[Group]] = {}
    for group in drawn:
        lines.setdefault(_label(group, keys), []).append(group)
    for label, line in lines.items():
        line.sort(key=lambda group: group.values[over])
        (means,) = ax.plot([group.values[over] for group in line], [group.mean for group in line], label=label)
        for group in line:
            places = [group.values[over]] * len(group.numbers)
            ax.plot(places, group.numbers, "o", markersize=4, color=means.get_color())
    numbers = [group.values[over] for group in drawn]
    if min(numbers) > 0 and max(numbers) > 30 * min(numbers):
        ax.set_xscale("log")
    ax.set(xlabel=over, ylabel=title)
    ax.grid(alpha=0.3)
    if any(lines):
        ax.legend(fontsize=8)


def _draw_bars(ax, drawn: Sequence[Group], keys: Sequence[str], title: str) -> None:
    bars = ax.barh(range(len(drawn)), [group.mean for group in drawn], color="#9ecae1")
    ax.bar_label(bars, fmt="%.1f", label_type="center", fontsize=8)
    for place, group in enumerate(drawn):
        ax.plot(group.numbers, [place] * len(group.numbers), "o", markersize=4, color="black")
    ax.set_yticks(range(len(drawn)), [_label(group, keys) for group in drawn], fontsize=8)
    ax.set(xlabel=title)
    ax.invert_yaxis()  # best on top
