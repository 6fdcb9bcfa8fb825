"""The Markdown of results: tables that fit a phone, and named blocks within a page."""

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from grafit_jax.errors import UserError
from grafit_jax.runs.results import Result, at_layer
from grafit_jax.runs.tables import markdown

# Returns the name of a metric of a result at one layer or label level.
Key = Callable[[Result, str], str]
_WHOLE: Mapping[str, Key] = {"": lambda result, metric: metric}


def at_layers(layers: Sequence[str]) -> dict[str, Key]:
    """Returns the parts of a table with a row for each layer."""
    return {layer: functools.partial(_at_layer, layer) for layer in layers}


def at_levels(levels: Sequence[str]) -> dict[str, Key]:
    """Returns the parts of a table with a row for each label level, from coarse to fine."""
    prefixes = {level: f"{level}/" for level in levels[:-1]} | {levels[-1]: ""}
    return {level: functools.partial(_at_level, prefix) for level, prefix in prefixes.items()}


def _at_layer(layer: str, result: Result, metric: str) -> str:
    return at_layer(result.get("config", {}), metric, layer)


def _at_level(prefix: str, result: Result, metric: str) -> str:
    return f"{prefix}{metric}"


def markdown_table(
    results: Sequence[Result],
    names: Sequence[str],
    name: Callable[[Result], Sequence[str]],
    columns: Mapping[str, str],
    part: str = "",
    parts: Mapping[str, Key] = _WHOLE,
) -> str:
    """Returns a table with a row for every name and part: percent, mean ± standard deviation over the seeds.

    Args:
      results: of `results.collect`.
      names: headings of the first columns.
      name: the cells of a result in these columns; results with the same cells share a row.
      columns: metric -> heading.
      part: heading of the column of parts, where there are several.
      parts: label -> key of a metric. A row without any of the metrics is left out.
    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(name(result)), []).append(result)
    rows = []
    for cells, runs in groups.items():
        for label, key in parts.items():
            numbers = [percent([run["metrics"].get(key(run, metric)) for run in runs]) for metric in columns]
            if any(number != "–" for number in numbers):
                rows.append([*cells, *([label] if len(parts) > 1 else []), *numbers, _training(runs)])
    return markdown([*names, *([part] if len(parts) > 1 else []), *columns.values(), "training"], rows)


def row_names(
    results: Sequence[Result], notes: Mapping[str, str], facts: Mapping[str, Callable[[Mapping[str, Any]], str]]
) -> tuple[Callable[[Result], Sequence[str]], str]:
    """Returns the `name` of rows for `markdown_table`, and a sentence on what most rows share.

    A fact that more than half of the results share is stated in the sentence; a row states only what differs.

    Args:
      results: the results of one table.
      notes: method -> remark shown after its name.
      facts: name of a setting -> its value for a result's config.
    """

    def stated(result: Result) -> list[str]:
        return [f"{setting} {fact(result['config'])}" for setting, fact in facts.items()] if "config" in result else []

    every = [stated(result) for result in results]
    common = [
        phrase
        for of_fact in zip(*filter(None, every), strict=True)
        for phrase, count in Counter(of_fact).most_common(1)
        if count > len(of_fact) / 2
    ]

    def name(result: Result, notes: Mapping[str, str] = notes) -> Sequence[str]:
        own = [phrase for phrase in stated(result) if phrase not in common]
        return (", ".join([f"`{result['method']}`{notes.get(result['method'], '')}", *own]),)

    shared = all(phrase in common for phrases in every for phrase in phrases)
    sentence = f"{'All rows' if shared else 'Unless a row says otherwise'}: {', '.join(common)}." if common else ""
    return name, " ".join(filter(None, [sentence, _views({name(r, {})[0]: r["run"] for r in results})]))


def _views(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a sentence on the number of views per step: the most frequent one, and the rows with another."""
    views = {row: str(run["views_per_image"]) for row, run in runs.items() if run.get("views_per_image")}
    if not views:
        return ""
    counts = Counter(views.values())
    usual = counts.most_common(1)[0][0]
    others = [f"{of} for {' and '.join(row for row in views if views[row] == of)}" for of in counts if of != usual]
    return f"Views of an image per step: {'; '.join([usual, *others])}."


def percent(values: Sequence[float | None], *, deviation: bool = True) -> str:
    """Returns fractions as percent: the mean, ± the sample standard deviation of several; "–" for none."""
    numbers = [100 * v for v in values if v is not None]
    if not numbers:
        return "–"
    spread = f" ± {np.std(numbers, ddof=1):.1f}" if deviation and len(numbers) > 1 else ""
    return f"{np.mean(numbers):.1f}{spread}"


def _training(runs: Sequence[Result]) -> str:
    """Returns seeds × mean duration of a training; only the seeds if a duration is missing."""
    seconds = [run["run"]["train_seconds"] for run in runs if "train_seconds" in run["run"]]
    if len(seconds) < len(runs):
        return f"{len(runs)} seeds" if len(runs) > 1 else "–"
    duration = _duration(float(np.mean(seconds)))
    return f"{len(runs)} × {duration}" if len(runs) > 1 else duration


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def replace_block(text: str, name: str, block: str) -> str:
    """Returns `text` with the lines between `<!-- name -->` and `<!-- /name -->` replaced by `block`."""
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"found no block <!-- {name} --> … <!-- /{name} --> in a page; add these two lines to one.")
    shown = f"{block}\n" if block else ""
    return pattern.sub(lambda m: f"{m[1]}{shown}{m[2]}", text)
