"""Page section: R@1 of each fine class, and of the images of each coarse class."""

from collections.abc import Mapping, Sequence

import numpy as np

from grafit_jax.report import markup
from grafit_jax.report.markup import Cell, Section, text
from grafit_jax.report.shown import Classes, Run, Shown

# Maximum number of table rows.
_ROWS = 1000


def recall_by_class(
    label: np.ndarray, nearest: np.ndarray, group: np.ndarray, num_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Counts hits and queries of R@1 by group.

    Args:
      label: int [N]; a query is a hit if its nearest image has the same label.
      nearest: int [N], row of the nearest other image of each query.
      group: int [N], group of each query, below `num_groups`; `label` itself for R@1 by class.
      num_groups: G.

    Returns:
      Hits int [G] and queries int [G]. As in recall@1, queries without another image of their label do not count.
    """
    counted = np.bincount(label)[label] > 1
    right = counted & (label[nearest] == label)
    return np.bincount(group[right], minlength=num_groups), np.bincount(group[counted], minlength=num_groups)


def section(shown: Shown) -> Section:
    """Makes one sortable table per level."""
    fine, *coarser = shown.classes
    content = _table(shown.runs, fine, {"R@1": fine}, coarser)
    for level in coarser:
        content += _table(shown.runs, level, {f"R@1 {fine.level}": fine, f"R@1 {level.level}": level}, ())
    return Section("classes", "R@1 by class", content)


def _table(runs: Sequence[Run], group: Classes, evaluated: Mapping[str, Classes], beside: Sequence[Classes]) -> str:
    """Makes the table of the classes of `group`, lowest R@1 first.

    Args:
      runs: one column each; two runs also get their difference.
      group: classes of the rows.
      evaluated: heading -> labels that define a hit.
      beside: coarser classes to show as further columns.
    """
    images = np.bincount(group.label)
    columns = {
        f"{heading}, {run.name}" if len(runs) > 1 else heading: recall_by_class(
            level.label, run.nearest, group.label, len(images)
        )
        for heading, level in evaluated.items()
        for run in runs
    }
    rows = []
    for label, row in zip(*np.unique(group.label, return_index=True), strict=True):
        bars = [markup.bar(int(right[label]), int(of[label])) for right, of in columns.values()]
        named = [markup.name(level.of(row)) for level in (group, *beside)]
        gain = [_gain(*bars[:2])] if len(runs) == 2 else []
        rows.append([*named, markup.number(int(images[label]), "{:d}"), *bars, *gain])
    place = 2 + len(beside)
    lowest = sorted(rows, key=lambda cells: (cells[place].value == markup.UNKNOWN, cells[place].value))[:_ROWS]
    note = f"<p>The {_ROWS:,} of {len(rows):,} classes with the lowest R@1.</p>" if len(rows) > _ROWS else ""
    header = [group.level, *(level.level for level in beside), "images", *columns]
    header += [f"gain in {next(iter(evaluated))}"] if len(runs) == 2 else []
    caption = f"R@1 by class at level {text(group.level)}, in percent"
    return note + markup.table(caption, [*map(text, header)], lowest, sortable=True)


def _gain(one: Cell, other: Cell) -> Cell:
    known = markup.UNKNOWN not in (one.value, other.value)
    return markup.number(float(one.value) - float(other.value) if known else None, "{:+.1f}")
