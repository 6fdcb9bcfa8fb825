"""The section with what is taken for what: the class of the nearest image, among the fine classes of a coarse one."""

import numpy as np

from grafit_jax.report import markup
from grafit_jax.report.markup import Section, text
from grafit_jax.report.shown import Classes, Shown

# The classes of a table, and the tables, at most.
_COMPARED = 30
_TABLES = 300


def confusion(label: np.ndarray, nearest: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How often an image of one class has one of another class for its nearest.

    Args:
      label: int [N].
      nearest: int [N], the row of each image's nearest other one.
      classes: int [m], those that are compared, none twice.

    Returns:
      int [m, m + 1]: a row for every class; the last column counts nearest images of classes that are not compared.
    """
    place = np.full(max(label.max(), classes.max()) + 1, len(classes))
    place[classes] = np.arange(len(classes))
    return np.stack([
        np.bincount(place[label[nearest[label == c]]], minlength=len(classes) + 1) for c in classes
    ])  # fmt: skip


def section(shown: Shown) -> Section:
    """A table for every coarse class and run, the coarse classes with the most mistakes first."""
    fine, *coarser = shown.classes
    group = coarser[0] if coarser else Classes("", np.zeros_like(fine.label), ("all classes",))
    wrong = np.mean([fine.label[run.nearest] != fine.label for run in shown.runs], axis=0)
    wrong_of_class, wrong_of_group = np.bincount(fine.label, wrong), np.bincount(group.label, wrong)
    tables: list[dict] = []
    for label in sorted(np.unique(group.label), key=lambda g: -wrong_of_group[g]):
        members = np.unique(fine.label[group.label == label])
        if len(members) > 1 and len(tables) < _TABLES:
            worst = members[np.argsort(-wrong_of_class[members], kind="stable")]
            compared = np.sort(worst[:_COMPARED])
            tables.append({
                "name": group.names[label],
                "of": len(members),
                "classes": [fine.names[c] for c in compared],
                "counts": [confusion(fine.label, run.nearest, compared).tolist() for run in shown.runs],
            })  # fmt: skip
    if not tables:
        return Section("confusion", "Confusion", "<p>No class here holds two finer ones.</p>")
    options = "".join(f'<option value="{i}">{text(table["name"])}</option>' for i, table in enumerate(tables))
    words = f"""<p>Rows: the class of an image. Columns: the class of the test image nearest to it. The choice begins
with the most mistakes.</p>
<p class="control" hidden><label for="confusion-choice">Inside of</label>
<select id="confusion-choice">{options}</select></p>
<div id="confusion-tables"></div><noscript><p>These tables need JavaScript.</p></noscript>"""
    data = markup.data("confusion-data", {"runs": [run.name for run in shown.runs], "groups": tables})
    return Section("confusion", "Confusion", words + data)
