"""The section with the map: the embeddings in two dimensions, with an image at every point."""

import numpy as np

from grafit_jax.report import markup, thumbnails
from grafit_jax.report.markup import Section, text
from grafit_jax.report.shown import Run, Shown

# The pixels of a side, and how many images there are.
_SIDE = 48
_POINTS = 1000


def sample(n: int, most: int, seed: int) -> np.ndarray:
    """At most `most` of n rows, ascending, drawn by the seed."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])


def plane(embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two directions of unit-length embeddings along which they differ most (principal components).

    Args:
      embedding: float [N, D], any length but zero.

    Returns:
      float64 [N, 2], 0 where there is no second direction, and float64 [2], the shares of the variance along them. The
      entry of largest magnitude along each is positive, so that a map does not flip from one machine to another.
    """
    unit = embedding / np.linalg.norm(embedding.astype(np.float64), axis=1, keepdims=True)
    axes, scale, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    points, shares = np.zeros((len(unit), 2)), np.zeros(2)
    points[:, : len(scale)] = (axes * scale)[:, :2]
    shares[: len(scale)] = (scale**2 / (np.sum(scale**2) or 1.0))[:2]
    largest = points[np.abs(points).argmax(axis=0), range(2)]
    return points * np.where(largest < 0, -1, 1), shares


def section(shown: Shown) -> Section:
    """The same images for every run."""
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
    some = f"{len(rows):,} of {total:,} test images, drawn by the seed," if len(rows) < total else "All test images"
    options = "".join(f'<option value="{i}">{text(name)}</option>' for i, name in enumerate(data["groups"]))
    words = f"""<p>{some} in the two directions along which their
embeddings differ most (principal components). Point at an image, tap it, or go from one to the next by the arrow
keys.</p>
<p class="control" hidden><label for="map-choice">Stress</label> <select id="map-choice">
<option value="">all classes of level {text(group.level)}</option>{options}</select></p>
<div id="maps"></div><noscript><p>The map needs JavaScript.</p></noscript>"""
    return Section("map", "Map", words + markup.data("map-data", data))


def run_map(run: Run, rows: np.ndarray) -> dict[str, object]:
    """The places of some images: whole numbers up to 1000."""
    points, shares = plane(run.embedding[rows])
    scale = 1000 / (np.abs(points).max() or 1.0)
    return {
        "name": run.name,
        "layer": run.layer,
        "shares": [round(100 * share, 1) for share in shares.tolist()],
        "points": np.rint(points * scale).astype(int).tolist(),
    }
