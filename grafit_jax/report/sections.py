"""The parts of a page that are numbers: metrics, curves, R@1 by class, confusion, environment."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grafit_jax.data.records import Records
from grafit_jax.report import analysis, markup
from grafit_jax.report import curves as svg
from grafit_jax.report.markup import Cell, text
from grafit_jax.report.shown import Classes, Part, Run, Seen
from grafit_jax.runs.results import HEADLINE, LAYERS, by_layer_and_level

_PERCENT = {"map": "mAP", "knn_top1": "k-NN", "top1": "top-1", "probe_top1": "probe"}
# What of the log is no curve.
_NOT_DRAWN = ("step", "epoch", "seconds", "data_wait_seconds")
# The rows of a table of classes, the classes of a table of confusion, and the tables of confusion, at most.
_ROWS = 1000
_COMPARED = 30
_TABLES = 300


def headline(runs: Sequence[Run], classes: Sequence[Classes]) -> str:
    """What was looked at, and three numbers of every run."""
    fine, *_ = classes
    levels = " in ".join(f"{len(np.unique(c.label)):,} classes of level {c.level}" for c in classes)
    tiles = ""
    for run in runs:
        values = {said: run.result["metrics"].get(fine.prefix + key) for key, said in HEADLINE.items()}
        numbers = "".join(f"<div><dt>{k}</dt><dd>{100 * v:.1f}</dd></div>" for k, v in values.items() if v is not None)
        tiles += (
            f'<div class="tile"><p class="run">{text(run.name)}</p><p class="note">method '
            f"{text(run.result['method'])}, seed {run.result['seed']}</p><dl>{numbers}</dl></div>"
        )
    return (
        f'<p>{len(fine.label):,} test images of {text(levels)}.</p><div class="tiles">{tiles}</div>'
        f'<p class="note">At level {text(fine.level)}, in percent.</p>'
    )


def metrics(runs: Sequence[Run], test: Records) -> Part:
    """metrics.json as a table: a row for every layer and level, of every run."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for run in runs:
        for (layer, level), values in by_layer_and_level(run.result["metrics"], run.layer, test.finest).items():
            found[layer, level, run.name] = values
    columns = sorted(dict.fromkeys(m for row in found.values() for m in row), key=lambda m: not _is_percent(m))
    levels = [*test.levels][::-1]
    order = sorted(found, key=lambda key: (LAYERS.index(key[0]), levels.index(key[1]) if key[1] in levels else 0))
    rows = [
        [
            markup.name(f"{level}, {layer}"),
            *([markup.name(run)] if len(runs) > 1 else []),
            *(_metric(metric, found[layer, level, run].get(metric)) for metric in columns),
        ]
        for layer, level, run in order
    ]
    steps = ", ".join(f"{run.name} after step {run.result['metrics'].get('step', 0):,}" for run in runs)
    note = (
        f"<p>Test images among each other (R@k, mAP) and by the training images (k-NN): {text(steps)}. In percent.</p>"
    )
    header = ["labels, features", *(["run"] if len(runs) > 1 else []), *(text(_heading(metric)) for metric in columns)]
    return Part("metrics", "Metrics", note + markup.table("Metrics of every level and layer", header, rows))


def _heading(metric: str) -> str:
    return _PERCENT.get(metric, metric.replace("recall@", "R@").replace("_", " "))


def _is_percent(metric: str) -> bool:
    return metric.startswith("recall@") or metric in _PERCENT


def _metric(metric: str, value: float | None) -> Cell:
    if _is_percent(metric):
        return markup.number(None if value is None else 100 * value)
    return markup.number(value, "{:g}")


def curves(runs: Sequence[Run]) -> Part:
    """What was logged, over the epochs: a chart for every value."""
    charts: dict[str, list[svg.Line]] = {}
    for number, run in enumerate(runs):
        epochs = {line["step"]: line["epoch"] for line in run.log if 0 < line.get("epoch", 0) < math.inf}
        values: dict[str, dict[float, float]] = {}
        for line in run.log:
            for key, value in line.items():
                if key not in _NOT_DRAWN and line["step"] in epochs and math.isfinite(value):
                    values.setdefault(key, {})[epochs[line["step"]]] = value
        for key, points in values.items():
            charts.setdefault(_layered(key, run.layer), []).append(
                svg.Line(number, run.name, [*points], [*points.values()])
            )
    charts = dict(sorted(charts.items(), key=lambda item: item[0] != "loss"))
    training = {key.replace("_", " "): lines for key, lines in charts.items() if not key.startswith("eval/")}
    evaluation = {
        _title(key): lines
        for key, lines in sorted(charts.items(), key=lambda item: [*LAYERS, ""].index(_layer(item[0])))
        if _is_headline(key) and any(len(line.x) > 1 for line in lines)
    }
    sample = (
        '<svg viewBox="0 0 30 8" aria-hidden="true"><line class="line line-{}" x1="0" x2="30" y1="4" y2="4"/></svg>'
    )
    names = "".join(f"<li>{sample.format(number)}{text(run.name)}</li>" for number, run in enumerate(runs))
    once = """<p>Evaluated at the end alone: the numbers are in the table above. A run with
<code>--config.eval.every_epochs=5</code> has them over the epochs.</p>"""
    return Part(
        "curves",
        "Curves",
        (f'<ul class="legend">{names}</ul>' if len(runs) > 1 else "")
        + f"<h3>Training</h3>{_charts(training) or '<p>Nothing was logged.</p>'}"
        + f"<h3>Evaluation</h3>{_charts(evaluation) or once}",
    )


def _layered(key: str, headline: str) -> str:
    """The key of a metric with the layer that it is of, which the key of the headline's does not name."""
    first, *path = key.split("/")
    named = first != "eval" or path[0] in LAYERS or path[-1] not in HEADLINE
    return key if named else "/".join((first, headline, *path))


def _layer(key: str) -> str:
    return next((part for part in key.split("/") if part in LAYERS), "")


def _is_headline(key: str) -> bool:
    """Whether it is one of the first metrics to look at."""
    first, *path = key.split("/")
    return first == "eval" and path[-1] in (*HEADLINE, "top1")


def _title(key: str) -> str:
    """A chart's title: metric, level if it is not the finest, layer."""
    *path, metric = key.split("/")[1:]
    return ", ".join((_heading(metric), *(part for part in path if part not in LAYERS), *filter(None, [_layer(key)])))


def _charts(charts: Mapping[str, Sequence[svg.Line]]) -> str:
    drawn = "".join(svg.chart(title, lines) for title, lines in charts.items())
    return drawn and f'<div class="charts">{drawn}</div>'


def by_class(seen: Sequence[Seen], classes: Sequence[Classes]) -> Part:
    """R@1 of every class, and of the images of every coarser one."""
    fine, *coarser = classes
    content = _recalls(seen, fine, {"R@1": fine}, coarser)
    for level in coarser:
        content += _recalls(seen, level, {f"R@1 {fine.level}": fine, f"R@1 {level.level}": level}, ())
    return Part("classes", "R@1 by class", content)


def _recalls(seen: Sequence[Seen], group: Classes, judged: Mapping[str, Classes], beside: Sequence[Classes]) -> str:
    """A sortable table of the classes of `group`, those with the lowest R@1 first.

    Args:
      seen: the runs.
      group: whose classes the queries are counted by.
      judged: heading -> the labels that a query and its nearest image have to share.
      beside: coarser classes that are named too.
    """
    images = np.bincount(group.label)
    present, first = np.unique(group.label, return_index=True)
    two = len(seen) == 2
    columns = {
        f"{heading}, {s.run.name}" if len(seen) > 1 else heading: analysis.recall_by_class(
            level.label, s.nearest, group.label, len(images)
        )
        for heading, level in judged.items()
        for s in seen
    }
    rows = []
    for label, row in zip(present, first, strict=True):
        bars = [markup.bar(int(right[label]), int(of[label])) for right, of in columns.values()]
        named = [markup.name(level.of(row)) for level in (group, *beside)]
        rows.append([*named, markup.number(int(images[label]), "{:d}"), *bars, *([_gain(*bars[:2])] if two else [])])
    place = 2 + len(beside)
    lowest = sorted(rows, key=lambda cells: (cells[place].value == markup.UNKNOWN, cells[place].value))[:_ROWS]
    note = f"<p>{_ROWS:,} of {len(rows):,} classes, those with the lowest R@1.</p>" if len(rows) > _ROWS else ""
    header = [group.level, *(level.level for level in beside), "images", *columns]
    header += [f"gain in {next(iter(judged))}"] if two else []
    caption = f"R@1 by class of level {text(group.level)}, in percent"
    return note + markup.table(caption, [*map(text, header)], lowest, sortable=True)


def _gain(one: Cell, other: Cell) -> Cell:
    """Of one R@1 over another."""
    known = one.value != markup.UNKNOWN and other.value != markup.UNKNOWN
    return markup.number(float(one.value) - float(other.value) if known else None, "{:+.1f}")


def mistakes(seen: Sequence[Seen], classes: Sequence[Classes]) -> Part:
    """Which class the nearest image is of, among the fine classes of each coarse one."""
    fine, *coarser = classes
    everything = Classes("", "", np.zeros_like(fine.label), ("all classes",))
    group = coarser[0] if coarser else everything
    wrong = np.mean([fine.label[s.nearest] != fine.label for s in seen], axis=0)
    wrong_of_class, wrong_of_group = np.bincount(fine.label, wrong), np.bincount(group.label, wrong)
    tables: list[dict[str, Any]] = []
    for label in sorted(np.unique(group.label), key=lambda g: -wrong_of_group[g]):
        members = np.unique(fine.label[group.label == label])
        if len(members) > 1 and len(tables) < _TABLES:
            worst = members[np.argsort(-wrong_of_class[members], kind="stable")]
            compared = np.sort(worst[:_COMPARED])
            tables.append({
                "name": group.names[label],
                "of": len(members),
                "classes": [fine.names[c] for c in compared],
                "counts": [analysis.confusion(fine.label, s.nearest, compared).tolist() for s in seen],
            })  # fmt: skip
    if not tables:
        return Part("confusion", "Confusion", "<p>No class here holds two finer ones.</p>")
    options = "".join(f'<option value="{i}">{text(table["name"])}</option>' for i, table in enumerate(tables))
    content = f"""<p>Rows: the class of an image. Columns: the class of the test image nearest to it. The choice begins
with the most mistakes.</p>
<p class="control" hidden><label for="confusion-choice">Inside of</label>
<select id="confusion-choice">{options}</select></p>
<div id="confusion-tables"></div><noscript><p>These tables need JavaScript.</p></noscript>"""
    return Part(
        "confusion",
        "Confusion",
        content + markup.data("confusion-data", {"runs": [s.run.name for s in seen], "groups": tables}),
    )


def environment(runs: Sequence[Run]) -> Part:
    """What the numbers stand on: run.json and config.json."""
    known = [{key: value for key, value in run.result["run"].items() if key != "curve"} for run in runs]  # drawn above
    facts = _side_by_side("Environment", runs, [_flat(of_run) for of_run in known])
    config = _side_by_side("Config", runs, [run.result["config"] for run in runs])
    return Part("environment", "Environment", f"{facts}<details><summary>Config</summary>{config}</details>")


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        flat |= _flat(value, f"{key}: ") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _side_by_side(caption: str, runs: Sequence[Run], columns: Sequence[Mapping[str, Any]]) -> str:
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [[markup.name(key), *(markup.name(column.get(key, "–")) for column in columns)] for key in keys]
    return markup.table(caption, ["name", *(text(run.name) for run in runs)], rows)
