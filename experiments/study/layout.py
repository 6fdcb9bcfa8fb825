"""The Markdown of results: a row for every method, and blocks within a page."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from grafit_jax.errors import UserError
from grafit_jax.report.tables import markdown
from grafit_jax.runs.results import Result


def markdown_table(
    results: Sequence[Result],
    columns: Mapping[str, str],
    notes: Mapping[str, str],
    facts: Mapping[str, Callable[[Mapping[str, Any]], str]] | None = None,
) -> str:
    """A row for every method, and facts, in order of appearance: in percent, mean ± standard deviation over the seeds.

    Args:
      results: as `collect` gives them.
      columns: metric -> heading.
      notes: method -> what is said behind its name.
      facts: heading -> what is said of a result's config, in columns before the metrics.
    """
    facts = facts or {}
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        said = [fact(result["config"]) for fact in facts.values()]
        groups.setdefault((result["method"], *said), []).append(result)
    rows = []
    for (method, *said), runs in groups.items():
        cells = [_percent([r["metrics"].get(key) for r in runs]) for key in columns]
        seconds = [r["run"]["train_seconds"] for r in runs if "train_seconds" in r["run"]]
        minutes = _duration(float(np.mean(seconds))) if seconds else "-"
        views = runs[0]["run"].get("views_per_image") or "-"
        rows.append([f"`{method}`{notes.get(method, '')}", *said, *cells, str(len(runs)), str(views), minutes])
    return markdown(["method", *facts, *columns.values(), "seeds", "views an image", "training"], rows)


def level_columns(levels: Sequence[str]) -> dict[str, str]:
    """Columns for `markdown_table`: k-NN top-1, then mAP, at every level, which are given from coarse to fine."""
    prefix = {level: f"{level}/" for level in levels[:-1]} | {levels[-1]: ""}
    return {
        f"{prefix[level]}{metric}": f"{heading}, {level}"
        for metric, heading in (("knn_top1", "k-NN"), ("map", "mAP"))
        for level in levels
    }


def _percent(values: list[float | None]) -> str:
    numbers = [100 * v for v in values if v is not None]
    if not numbers:
        return "-"
    spread = f" ± {np.std(numbers, ddof=1):.1f}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):.1f}{spread}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def replace_block(text: str, name: str, block: str) -> str:
    """`text` with what stands between `<!-- name -->` and `<!-- /name -->` replaced by `block`."""
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(text):
        raise UserError(
            f"no block <!-- {name} --> … <!-- /{name} --> found: put these two lines where it should stand."
        )
    return pattern.sub(lambda m: f"{m[1]}{block}\n{m[2]}", text)
