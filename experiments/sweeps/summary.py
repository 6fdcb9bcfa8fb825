"""What a sweep has come to: a table, best first, and a plot. Every number comes from files that a run wrote."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from study import layout

from grafit_jax.errors import UserError, did_you_mean
from grafit_jax.runs import results
from grafit_jax.runs.preemption import EXIT_PREEMPTED
from grafit_jax.runs.results import Result
from sweeps import runner
from sweeps.expansion import PLOT, Sweep, Values
from sweeps.runner import Standing

_COUNTS = ("step", "queries_without_positive")  # which are no better for being more
# Shown beside the metric that a table is ordered by.
_BESIDE = {"map": "fine mAP", "recall@1": "R@1", "knn_top1": "fine k-NN"}


def check_metric(metric: str, sweep: Sweep) -> None:
    """Raises a UserError for what no run of the sweep will have, before one is started."""
    ks = sorted({k for point in sweep.points for k in point.config.eval.recall_at})
    known = ["map", "knn_top1", "top1", *(f"recall@{k}" for k in ks)]
    if metric.rpartition("/")[2] not in known:
        raise UserError(
            f"found --metric={metric}{did_you_mean(metric, known)}: want one of {', '.join(known)}, or one of "
            "them behind a level or a layer, as coarse/map."
        )


def conclude(sweep: Sweep, directory: pathlib.Path, wanted: Sequence[str], metric: str, *, stopped: bool) -> int:
    """Prints the table of the whole sweep, names what is not complete, and draws.

    Args:
      sweep: of which the table is.
      directory: of its runs.
      wanted: the names of the points that were to be run.
      metric: what is best.
      stopped: whether that was cut short.

    Returns:
      the exit status: 0, all of `wanted` is complete; 1, some of it failed; 75, it is to be started again.
    """
    standings = {point.name: runner.standing(directory / point.name) for point in sweep.points}
    found = show(sweep, directory, standings, metric)
    for name, now in standings.items():
        if now.state != "complete":
            print(f"{name}: {now}")
    if found:
        plot(directory / PLOT, found, sweep.varying, metric)
        print(f"plot: {directory / PLOT}")
    states = {standings[name].state for name in wanted}
    if states <= {"complete"}:
        return 0
    return 1 if "failed" in states and not stopped else EXIT_PREEMPTED


@dataclasses.dataclass(frozen=True)
class Group:
    """The results of a point with all its seeds.

    Attributes:
      values: of the point, without the seed.
      results: one for every seed that is complete.
      mean: of the metric over them, NaN if none has it.
      spread: its standard deviation, 0 for a single seed.
    """

    values: Values
    results: tuple[Result, ...]
    mean: float
    spread: float


def show(sweep: Sweep, directory: pathlib.Path, standings: Mapping[str, Standing], metric: str) -> list[Group]:
    """Prints the table of the points that are complete, if there are any, and returns what it is made of."""
    complete = [point for point in sweep.points if standings[point.name].state == "complete"]
    found = groups([(point.values, results.collect(directory / point.name)) for point in complete], metric)
    if found:
        print(f"\n{table(found, sweep.varying, metric)}\n")
    return found


def groups(collected: Sequence[tuple[Values, Result]], metric: str) -> list[Group]:
    """Points that differ in the seed alone together, the best mean of `metric` first.

    Raises:
      UserError: a metric that no result has.
    """
    known = dict.fromkeys(name for _, result in collected for name in result["metrics"] if not name.endswith(_COUNTS))
    if collected and metric not in known:
        raise UserError(
            f"no result has the metric {metric!r}{did_you_mean(metric, known)}: want --metric= one of "
            f"{', '.join(known)}."
        )
    by_values: dict[tuple, list[tuple[Values, Result]]] = {}
    for values, result in collected:
        by_values.setdefault(tuple(sorted(_base(values).items())), []).append((values, result))
    found = []
    for entries in by_values.values():
        numbers = [result["metrics"][metric] for _, result in entries if metric in result["metrics"]]
        mean = float(np.mean(numbers)) if numbers else math.nan
        spread = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0
        found.append(Group(_base(entries[0][0]), tuple(result for _, result in entries), mean, spread))
    return sorted(found, key=lambda group: math.inf if math.isnan(group.mean) else -group.mean)


def _base(values: Values) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "seed"}


def _apart(found: Sequence[Group], varying: Sequence[str]) -> list[str]:
    """The keys that tell these groups apart: others may have come to no result."""
    return [key for key in varying if len({str(group.values.get(key)) for group in found}) > 1]


def table(found: Sequence[Group], varying: Sequence[str], metric: str) -> str:
    """The groups in Markdown, in percent, mean ± standard deviation over the seeds."""
    facts = {key: lambda values, key=key: str(values.get(key, "")) for key in _apart(found, varying) if key != "method"}
    columns = {metric: f"**{_BESIDE.get(metric, metric)}**"} | {k: v for k, v in _BESIDE.items() if k != metric}
    # What is told apart is what the sweep says, not the whole config.
    results = [result | {"config": group.values} for group in found for result in group.results]
    return layout.markdown_table(results, columns, {}, facts)


def plot(path: pathlib.Path, found: Sequence[Group], varying: Sequence[str], metric: str) -> None:
    """A PNG: the metric over the one number that varies, a line for all else; or parallel coordinates of all keys."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = [group for group in found if not math.isnan(group.mean)]
    keys = _apart(drawn, varying)
    numeric = [key for key in keys if all(_is_number(group.values.get(key, 0)) for group in drawn)]
    title = f"{_BESIDE.get(metric, metric)}, in percent"
    if len(numeric) == 1 and all(numeric[0] in group.values for group in drawn):  # a line has a place for all of them
        figure, ax = plt.subplots(figsize=(6.4, 4.0))
        _draw_lines(ax, lines(drawn, numeric[0], keys), numeric[0], title)
    else:
        figure, ax = plt.subplots(figsize=(2.0 * max(3, len(keys) + 1), 4.0))
        _draw_parallel(ax, drawn, keys, title)
    figure.tight_layout(pad=0.6)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def lines(drawn: Sequence[Group], key: str, varying: Sequence[str]) -> dict[str, list[Group]]:
    """A line for whatever else varies: its label -> its groups in the order of `key`; the best line first."""
    found: dict[str, list[Group]] = {}
    for group in drawn:
        label = ", ".join(f"{k}={group.values[k]}" for k in varying if k != key and k in group.values)
        found.setdefault(label, []).append(group)
    return {label: sorted(line, key=lambda group: group.values[key]) for label, line in found.items()}


def _draw_lines(ax, found: Mapping[str, Sequence[Group]], key: str, title: str) -> None:
    for number, (label, line) in enumerate(found.items()):
        ax.errorbar(
            [group.values[key] for group in line],
            [100 * group.mean for group in line],
            yerr=[100 * group.spread for group in line],
            marker="os^Dvp*X"[number % 8],
            markersize=5,
            linewidth=1.4,
            capsize=3,
            label=label,
        )
    numbers = [group.values[key] for line in found.values() for group in line]
    if numbers and min(numbers) > 0 and max(numbers) > 30 * min(numbers):
        ax.set_xscale("log")
    ax.set(xlabel=key, ylabel=title)
    ax.grid(alpha=0.3)
    if any(found):
        ax.legend(fontsize=8)


def coordinates(drawn: Sequence[Group], varying: Sequence[str]) -> tuple[list[list[str]], np.ndarray]:
    """Parallel coordinates: the ticks of every key's axis from bottom to top, and the groups' places on them.

    At equal distances: numbers in their order, of all else what appears first on top; "none" where there is no value.

    Returns:
      ticks, and places [groups, keys] in [0, 1].
    """
    ticks, places = [], np.full((len(drawn), len(varying)), 0.5)
    for column, key in enumerate(varying):
        values = list(dict.fromkeys(group.values[key] for group in drawn if key in group.values))
        values = sorted(values) if all(map(_is_number, values)) else values[::-1]
        names = ["none"] * any(key not in group.values for group in drawn) + [str(value) for value in values]
        ticks.append(names)
        if len(names) > 1:
            places[:, column] = [names.index(str(g.values.get(key, "none"))) / (len(names) - 1) for g in drawn]
    return ticks, places


def _draw_parallel(ax, drawn: Sequence[Group], varying: Sequence[str], title: str) -> None:
    import matplotlib.pyplot as plt

    ticks, places = coordinates(drawn, varying)
    means = np.array([100 * group.mean for group in drawn])
    low, high = (means.min(), means.max()) if len(means) else (0.0, 1.0)
    heights = (means - low) / (high - low) if high > low else np.full(len(means), 0.5)
    for number, (row, height) in reversed(list(enumerate(zip(places, heights, strict=True)))):  # the best on top
        style = {"linewidth": 2.6, "marker": "o"} if number == 0 else {"linewidth": 1.2, "alpha": 0.8}
        ax.plot([*range(len(varying)), len(varying)], [*row, height], color=plt.cm.viridis(0.9 * height), **style)
    for column, names in enumerate(ticks):
        ax.axvline(column, color="#9e9e9e", linewidth=0.8, zorder=0)
        for place, name in enumerate(names):
            y = place / (len(names) - 1) if len(names) > 1 else 0.5
            _label(ax, name, (column, y), xytext=(-5, 0), ha="right")
    ax.axvline(len(varying), color="black", linewidth=1.0, zorder=0)
    for value, height in {low: 0.0, high: 1.0}.items() if high > low else {low: 0.5}.items():
        _label(ax, f"{value:.1f}", (len(varying), height), xytext=(5, 0), ha="left")
    ax.set_xticks(range(len(varying) + 1), [*varying, title], fontsize=9)
    ax.set(yticks=[], xlim=(-0.6, len(varying) + 0.4), ylim=(-0.08, 1.08))
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _label(ax, text: str, place: tuple[float, float], **where: Any) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    ax.annotate(text, place, textcoords="offset points", va="center", size=8, bbox=box, zorder=5, **where)
