"""Page section: confusion matrices of the nearest image's class, within a coarse class."""

import numpy as np

from grafit_jax.report import markup
from grafit_jax.report.markup import Section, text
from grafit_jax.report.shown import Classes, Shown

# Maximum number of classes per table, and of tables.
_COMPARED = 30
_TABLES = 300


def confusion(label: np.ndarray, nearest: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Counts the classes of the nearest images by class.

    Args:
      label: int [N].
      nearest: int [N], row of the nearest other image of each image.
      classes: int [m], the compared classes, unique.

    Returns:
      int [m, m + 1]: one row per class; the last column counts nearest images of all other classes.
    """
    place = np.full(max(label.max(), classes.max()) + 1, len(classes))
    place[classes] = np.arange(len(classes))
    return np.stack([
        np.bincount(place[label[nearest[label == c]]], minlength=len(classes) + 1) for c in classes
    ])  # fmt: skip


def section(shown: Shown) -> Section:
    """Makes one table per coarse class and run, the coarse classes with the most errors first."""
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
    title = "Confusions within a coarse class" if coarser else "Confusions between classes"
    if not tables:
        return Section("confusion", title, "<p>No class has two or more subclasses.</p>")
    options = "".join(f'<option value="{i}">{text(table["name"])}</option>' for i, table in enumerate(tables))
    content = f"""<p>Rows: class of the query. Columns: class of its nearest test image. The menu is sorted by number of
errors.</p>
<p class="control" hidden><label for="confusion-choice">Within</label>
<select id="confusion-choice">{options}</select></p>
<div id="confusion-tables"></div><noscript><p>The tables require JavaScript.</p></noscript>"""
    data = markup.data("confusion-data", {"runs": [run.name for run in shown.runs], "groups": tables})
    return Section("confusion", title, content + data)
