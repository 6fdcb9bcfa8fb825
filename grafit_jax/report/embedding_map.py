"""Page section: a two-dimensional map of the embeddings, with an image at each point."""

import numpy as np

from grafit_jax.report import markup, thumbnails
from grafit_jax.report.markup import Section, text
from grafit_jax.report.shown import Run, Shown

# Pixels per side of a thumbnail, and maximum number of images.
_SIDE = 48
_POINTS = 1000


def sample(n: int, most: int, seed: int) -> np.ndarray:
    """Samples at most `most` of n rows without replacement, in ascending order."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])


def plane(embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects normalised embeddings onto their first two principal components.

    Args:
      embedding: float [N, D], non-zero vectors of any length.

    Returns:
      The coordinates float64 [N, 2] and the explained variance ratios float64 [2]; missing components are 0. The
      coordinate of largest magnitude on each axis is positive, so that the map has the same signs on all machines.
    """
    unit = embedding / np.linalg.norm(embedding.astype(np.float64), axis=1, keepdims=True)
    axes, scale, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    points, shares = np.zeros((len(unit), 2)), np.zeros(2)
    points[:, : len(scale)] = (axes * scale)[:, :2]
    shares[: len(scale)] = (scale**2 / (np.sum(scale**2) or 1.0))[:2]
    largest = points[np.abs(points).argmax(axis=0), range(2)]
    return points * np.where(largest < 0, -1, 1), shares


def section(shown: Shown) -> Section:
    """Makes one map per run, all with the same images."""
    test, total = shown.test, len(shown.test)
    rows = sample(total, _POINTS, shown.runs[0].result["seed"])
    small = thumbnails.thumbnails(test.image, rows, _SIDE)
    sheet, columns = thumbnails.sheet([small[row] for row in rows.tolist()])
    fine, group = shown.classes[0], shown.classes[-1]
    groups, group_of = np.unique(group.label[rows], return_inverse=True)
    names, name_of = np.unique(fine.label[rows], return_inverse=True)
    data = {
        "maps": [run_map(run, rows) for run in shown.runs],
        "sheet": sheet,
        "columns": columns,
        "id": shown.ids[rows].tolist(),
        "group": group_of.tolist(),
        "groups": [group.names[label] for label in groups],
        "class": name_of.tolist(),
        "classes": [fine.names[label] for label in names],
        "twoLevels": len(shown.classes) > 1,
    }
    some = f"{len(rows):,} of {total:,} test images, sampled at random," if len(rows) < total else "All test images,"
    options = "".join(f'<option value="{i}">{text(name)}</option>' for i, name in enumerate(data["groups"]))
    content = f"""<p>{some} projected onto the first two principal components of their embeddings. Hover over an
image, tap it, or move between images with the arrow keys.</p>
<p class="control" hidden><label for="map-choice">Highlight</label> <select id="map-choice">
<option value="">all classes at level {text(group.level)}</option>{options}</select></p>
<div id="maps"></div><noscript><p>The map requires JavaScript.</p></noscript>"""
    return Section("map", "Embedding map", content + markup.data("map-data", data))


def run_map(run: Run, rows: np.ndarray) -> dict[str, object]:
    """Returns the map of the given rows, with coordinates as integers from -1000 to 1000."""
    points, shares = plane(run.embedding[rows])
    scale = 1000 / (np.abs(points).max() or 1.0)
    return {
        "name": run.name,
        "layer": run.layer,
        "shares": [round(100 * share, 1) for share in shares.tolist()],
        "points": np.rint(points * scale).astype(int).tolist(),
    }
