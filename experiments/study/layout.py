"""The Markdown of results: tables that fit a phone, and named blocks within a page."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from grafit_jax.errors import UserError
from grafit_jax.report.tables import markdown
from grafit_jax.runs.results import Result

# Row label -> prefix of its metrics: the two layers at which a method is evaluated.
LAYERS = {"trunk": "", "projector": "projector/"}
_WHOLE = {"": ""}


def markdown_table(
    results: Sequence[Result],
    names: Sequence[str],
    name: Callable[[Result], Sequence[str]],
    columns: Mapping[str, str],
    part: str = "",
    parts: Mapping[str, str] = _WHOLE,
) -> str:
    """Returns a table with a row for every name and part: percent, mean ± standard deviation over the seeds.

    Args:
      results: of `results.collect`.
      names: headings of the first columns.
      name: the cells of a result in these columns; results with the same cells share a row.
      columns: metric -> heading.
      part: heading of the column of parts, where there are several.
      parts: label -> prefix of the metrics. A row without any of these metrics is left out.
    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(name(result)), []).append(result)
    rows = []
    for cells, runs in groups.items():
        for label, prefix in parts.items():
            numbers = [_percent([run["metrics"].get(prefix + key) for run in runs]) for key in columns]
            if any(number != "–" for number in numbers):
                rows.append([*cells, *([label] if len(parts) > 1 else []), *numbers, _training(runs)])
    return markdown([*names, *([part] if len(parts) > 1 else []), *columns.values(), "training"], rows)


def tell_apart(
    results: Sequence[Result], notes: Mapping[str, str], facts: Mapping[str, Callable[[Mapping[str, Any]], str]]
) -> tuple[Callable[[Result], Sequence[str]], str]:
    """Returns the `name` of rows for `markdown_table`, and a sentence on what most rows share.

    A fact that more than half of the results share is stated in the sentence; a row states only what differs.

    Args:
      results: the results of one table.
      notes: method -> what follows its name.
      facts: what a fact is about -> its value for a result's config.
    """

    def stated(result: Result) -> list[str]:
        return [f"{about} {fact(result['config'])}" for about, fact in facts.items()] if "config" in result else []

    every = [stated(result) for result in results]
    common = [
        phrase
        for of_fact in zip(*filter(None, every), strict=True)
        for phrase, count in Counter(of_fact).most_common(1)
        if count > len(of_fact) / 2
    ]

    def name(result: Result) -> Sequence[str]:
        own = [phrase for phrase in stated(result) if phrase not in common]
        return (", ".join([f"`{result['method']}`{notes.get(result['method'], '')}", *own]),)

    shared = all(phrase in common for phrases in every for phrase in phrases)
    sentence = f"{'All rows' if shared else 'Unless a row says otherwise'}: {', '.join(common)}." if common else ""
    return name, " ".join(filter(None, [sentence, _views(results)]))


def _views(results: Sequence[Result]) -> str:
    """How many views of an image a step sees, by method."""
    views = {r["method"]: str(r["run"]["views_per_image"]) for r in results if r["run"].get("views_per_image")}
    if not views:
        return ""
    counts = Counter(views.values())
    usual = counts.most_common(1)[0][0]
    others = [f"{of} for {', '.join(f'`{m}`' for m in views if views[m] == of)}" for of in counts if of != usual]
    return f"Views of an image per step: {'; '.join([usual, *others])}."


def _percent(values: list[float | None]) -> str:
    numbers = [100 * v for v in values if v is not None]
    if not numbers:
        return "–"
    spread = f" ± {np.std(numbers, ddof=1):.1f}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):.1f}{spread}"


def _training(runs: Sequence[Result]) -> str:
    """Number of seeds × mean duration of a training."""
    seconds = [run["run"]["train_seconds"] for run in runs if "train_seconds" in run["run"]]
    if not seconds:
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
    return pattern.sub(lambda m: f"{m[1]}{block}\n{m[2]}", text)
