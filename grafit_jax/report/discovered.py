"""The page of proposed classes: a row for each cluster, its images nearest to the centre first; and their CSV."""

import csv
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from grafit_jax.errors import writing
from grafit_jax.report import markup, thumbnails
from grafit_jax.report.markup import Section, document, text
from grafit_jax.retrieval.discovery import Group
from grafit_jax.runs.tables import plain_table

# Images that are shown of a cluster, and pixels per side of each.
_SHOWN, _SIDE = 10, 128
# Keys of `Group.agreement` -> headings, in percent.
_AGREEMENT = {"largest": "largest finer class", "purity": "purity", "cluster_ari": "ARI"}


def overview(groups: Sequence[Group]) -> tuple[list[str], list[list[float | str | None]]]:
    """Returns headings and a row for each group; the agreement with finer classes, in percent, if any has several."""
    known = any(group.agreement.get("classes", 0) > 1 for group in groups)
    header = ["class", "images", "clusters", "silhouette"]
    header += ["finer classes", *_AGREEMENT.values()] if known else []
    rows: list[list[float | str | None]] = []
    for group in groups:
        found = group.agreement
        row: list[float | str | None] = [group.name, len(group.rows), len(group), group.silhouette.get(len(group))]
        if known:
            several = found.get("classes", 0) > 1
            row += [found.get("classes"), *(100 * found[key] if several else None for key in _AGREEMENT)]
        rows.append(row)
    return header, rows


def plain(groups: Sequence[Group]) -> str:
    """Returns the overview for a terminal."""
    header, rows = overview(groups)
    return plain_table(header, [[_spelt(*pair) for pair in zip(row, header, strict=True)] for row in rows])


def summary(groups: Sequence[Group]) -> str:
    """Returns one sentence on all groups, and one on their agreement with finer classes where these are known."""
    images, clusters = sum(len(group.rows) for group in groups), sum(map(len, groups))
    what = f"{len(groups)} classes" if len(groups) != 1 else groups[0].name
    said = f"{images:,} images of {what} in {clusters} clusters."
    several = [group for group in groups if group.agreement.get("classes", 0) > 1]
    if not several:
        return said
    weights = [len(group.rows) for group in several]
    purity, largest, ari = (
        100 * np.average([group.agreement[key] for group in several], weights=weights)
        for key in ("purity", "largest", "cluster_ari")
    )
    where = f"In the {len(several)} classes of several" if len(groups) > 1 else "Of its"
    return (
        f"{said} {where} known finer classes, {purity:.1f} % of the images are in a cluster of mostly their finer "
        f"class ({largest:.1f} % with one cluster for each class); adjusted Rand index {ari:.1f} %."
    )


def page(groups: Sequence[Group], ids: Sequence[str], image_of: Callable[[int], np.ndarray]) -> str:
    """Returns the page as ASCII HTML.

    Args:
      groups: of `discovery.discover`.
      ids: the id of each row of the embeddings, such as its path.
      image_of: maps a row to its image, uint8 [H, W, 3].
    """
    header, rows = overview(groups)
    cells = [
        [
            markup.Cell(text(_spelt(value, heading)), markup.UNKNOWN if value is None else value)
            for value, heading in zip(row, header, strict=True)
        ]
        for row in rows
    ]
    table = markup.table("Clusters by class", [text(name) for name in header], cells, sortable=True)
    note = (
        '<p class="note">Clusters of each class by k-means of its embeddings. Their number has the largest mean '
        "silhouette, or was given; every class is divided, also one of a single kind. Largest finer class: its share "
        "of the images. Purity: the share of images in a cluster of mostly their finer class. In percent, except the "
        "silhouette.</p>"
    )
    sections = [Section("overview", "Overview", note + table)]
    for number, group in enumerate(groups):
        content = f'<p class="note">{text(_described(group))}</p>'
        content += "".join(_row(group, cluster, ids, image_of) for cluster in range(len(group)))
        sections.append(Section(f"class-{number}", text(group.name), content))
    return document("Proposed classes", f"<p>{text(summary(groups))}</p>", sections)


def write_labels(path: pathlib.Path, groups: Sequence[Group], files: Sequence[str]) -> None:
    """Writes a CSV to correct and train on with `csv:`: path, split, coarse, fine (proposed) and similarity.

    Clusters follow each other, each sorted from its centre outwards; every image is in split train.

    Raises:
      UserError: the file cannot be written.
    """
    with writing(path), open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "coarse", "fine", "similarity"])
        for group in groups:
            for cluster in range(len(group)):
                for i in group.members(cluster):
                    place = os.path.abspath(files[group.rows[i]])
                    similarity = f"{group.similarity[i]:.4f}"
                    writer.writerow([place, "train", group.name, group.proposed(cluster), similarity])


def _spelt(value: float | str | None, heading: str) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    form = ".2f" if heading == "silhouette" else ".1f" if heading in _AGREEMENT.values() else ","
    return format(value, form)


def _described(group: Group) -> str:
    tried = ", ".join(f"{k}: {value:.2f}" for k, value in sorted(group.silhouette.items()))
    return f"{len(group.rows):,} images. Mean silhouette by the number of clusters: {tried or 'none was tried'}."


def _row(group: Group, cluster: int, ids: Sequence[str], image_of: Callable[[int], np.ndarray]) -> str:
    members, items = group.members(cluster), ""
    for i in members[:_SHOWN]:
        row = group.rows[i]
        image = thumbnails.thumbnail(image_of(row), _SIDE)
        label = "" if group.label is None else str(group.label[i])
        words = ", ".join(filter(None, [label, f"similarity {group.similarity[i]:.3f}", ids[row]]))
        caption = f'<small aria-hidden="true">{text(label)}</small>' if label else ""
        items += f'<li>{thumbnails.img(image)} alt="{text(words)}" title="{text(words)}">{caption}</li>'
    name, share = group.majority(cluster)
    mostly = f", {100 * share:.0f} % {name}" if name else ""
    return (
        f'<article class="cluster"><h3>{text(group.proposed(cluster))}</h3><p class="note">{len(members):,} '
        f'image{"s" * (len(members) > 1)}{text(mostly)}</p><ol class="near">{items}</ol></article>'
    )
