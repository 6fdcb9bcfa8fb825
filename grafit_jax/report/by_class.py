"""The section with R@1 of every class, and of the images of every coarser one."""

from collections.abc import Mapping, Sequence

import numpy as np

from grafit_jax.report import markup
from grafit_jax.report.markup import Cell, Section, text
from grafit_jax.report.shown import Classes, Run, Shown

# The rows of a table, at most.
_ROWS = 1000


def recall_by_class(
    label: np.ndarray, nearest: np.ndarray, group: np.ndarray, num_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """R@1 by group, as the two counts that it is the ratio of.

    Args:
      label: int [N], what a query and its nearest image have to share.
      nearest: int [N], the row of each query's nearest other image.
      group: int [N], below `num_groups`: what the queries are counted by, such as `label` itself.
      num_groups: G.

    Returns:
      int [G] right ones and int [G] queries, of which those without another image of their label are left out, as
      recall@1 leaves them out.
    """
    counted = np.bincount(label)[label] > 1
    right = counted & (label[nearest] == label)
    return np.bincount(group[right], minlength=num_groups), np.bincount(group[counted], minlength=num_groups)


def section(shown: Shown) -> Section:
    """A sortable table for each of the two levels."""
    fine, *coarser = shown.classes
    content = _table(shown.runs, fine, {"R@1": fine}, coarser)
    for level in coarser:
        content += _table(shown.runs, level, {f"R@1 {fine.level}": fine, f"R@1 {level.level}": level}, ())
    return Section("classes", "R@1 by class", content)


def _table(runs: Sequence[Run], group: Classes, judged: Mapping[str, Classes], beside: Sequence[Classes]) -> str:
    """The classes of `group`, those with the lowest R@1 first.

    Args:
      runs: a column each, and what the first gains where they are two.
      group: whose classes the queries are counted by.
      judged: heading -> the labels that a query and its nearest image have to share.
      beside: coarser classes that are named too.
    """
    images = np.bincount(group.label)
    columns = {
        f"{heading}, {run.name}" if len(runs) > 1 else heading: recall_by_class(
            level.label, run.nearest, group.label, len(images)
        )
        for heading, level in judged.items()
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
    note = f"<p>{_ROWS:,} of {len(rows):,} classes, those with the lowest R@1.</p>" if len(rows) > _ROWS else ""
    header = [group.level, *(level.level for level in beside), "images", *columns]
    header += [f"gain in {next(iter(judged))}"] if len(runs) == 2 else []
    caption = f"R@1 by class of level {text(group.level)}, in percent"
    return note + markup.table(caption, [*map(text, header)], lowest, sortable=True)


def _gain(one: Cell, other: Cell) -> Cell:
    known = markup.UNKNOWN not in (one.value, other.value)
    return markup.number(float(one.value) - float(other.value) if known else None, "{:+.1f}")
