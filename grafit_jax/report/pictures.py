"""Pictures of queries and their nearest images, framed by whether the labels agree."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from grafit_jax.data.records import Records
from grafit_jax.errors import UserError
from grafit_jax.retrieval import neighbors


class Frame(NamedTuple):
    """Frame around an image."""

    hue: str  # name of the colour
    colour: str  # for matplotlib and CSS
    style: str  # line style, for matplotlib and CSS
    width: float  # line width in points
    symbol: str  # for readers who cannot distinguish the colours
    meaning: str  # relation of the image to its query


FRAMES = {
    "query": Frame("black", "black", "solid", 2.5, "", "query"),
    "fine": Frame("green", "#2e7d32", "solid", 1.8, "✓", "same fine class"),
    "coarse": Frame("amber", "#ef9a00", "dashed", 1.8, "~", "same coarse class only"),
    "neither": Frame("red", "#c62828", "dotted", 1.8, "✗", "different class"),
    "unknown": Frame("grey", "#9e9e9e", "solid", 1.0, "?", "no labels"),
}
_LEGEND = [f"{f.hue}, {f.style}: {f.meaning}" for f in (FRAMES[name] for name in ("fine", "coarse", "neither"))]

# An image [H, W, C], its frame and, in a sheet with captions, its caption.
Thumbnail = tuple[np.ndarray, str] | tuple[np.ndarray, str, str]
# Side in inches of an image without and with captions, space between images and for a caption of three lines.
_SMALL, _LARGE, _GAP, _CAPTION = 0.62, 1.9, 0.1, 0.6


def gallery(
    path: pathlib.Path, records: Records, embeddings: Mapping[str, np.ndarray], *, rows: int = 6, k: int = 10
) -> None:
    """Draws queries and their k nearest other images, side by side for each entry of `embeddings`.

    The queries are drawn with a fixed seed, one from each of `rows` classes, the same for all entries.

    Raises:
      UserError: records without fine labels.
    """
    if records.label is None:
        raise UserError("gallery picture: found a split without fine labels; expected fine labels.")
    queries = queries_of(records.label, rows)
    sheets = {}
    for name, embedding in embeddings.items():
        near = neighbors.search(embedding[queries], embedding, k, query_ids=queries, gallery_ids=records.id)[1]
        sheets[name] = [
            [(records.image[query], "query")]
            + [(records.image[i], relation(records.label, records.train_label, query, i)) for i in row]
            for query, row in zip(queries, near, strict=True)
        ]
    contact_sheet(path, sheets)


def queries_of(label: np.ndarray, rows: int) -> np.ndarray:
    """Draws one query from each of at most `rows` classes with a fixed seed; returns their rows, sorted by class."""
    draw = np.random.default_rng(0)
    classes = np.sort(draw.permutation(np.unique(label))[:rows])
    return np.array([draw.choice(np.flatnonzero(label == c)) for c in classes])


def relation(label: np.ndarray | None, coarse_label: np.ndarray | None, query: int, other: int) -> str:
    """Returns the key in `FRAMES` of neighbour `other` of `query`: fine, coarse, neither, or unknown without labels.

    The label "" is an unknown one.
    """
    known = False
    for name, labels in (("fine", label), ("coarse", coarse_label)):
        if labels is not None and str(labels[query]) and str(labels[other]):
            known = True
            if labels[query] == labels[other]:
                return name
    return "neither" if known else "unknown"


def contact_sheet(
    path: pathlib.Path, sheets: Mapping[str, Sequence[Sequence[Thumbnail]]], *, captions: bool = False
) -> None:
    """Draws rows of framed images, the query first, with the sheets side by side under their names.

    With `captions`, images are drawn large with their captions below.
    """
    from matplotlib.figure import Figure

    width, height = max(len(row) for rows in sheets.values() for row in rows), max(map(len, sheets.values()))
    columns = width * len(sheets) + len(sheets) - 1
    inches = columns * (_LARGE + _GAP) if captions else max(_SMALL * (columns + 1), 2.4)
    legend: list[str] = []  # lines
    if any(frame in ("fine", "neither") for rows in sheets.values() for row in rows for _, frame, *_ in row):
        legend = ["    ".join(_LEGEND)] if inches > 5.5 else _LEGEND
    tall = 0.4 + (_LARGE + _CAPTION) * height if captions else 0.85 + (_SMALL + 0.1) * height
    figsize = (inches, tall + 0.15 * len(legend))
    figure = Figure(figsize=figsize)
    axes = figure.subplots(height, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for number, (name, rows) in enumerate(sheets.items()):
        left = number * (width + 1)
        for row, thumbnails in zip(axes, rows, strict=True):
            for ax, thumbnail in zip(row[left:], thumbnails, strict=False):
                _draw(ax, *thumbnail)
        axes[0, left].set_title("query", fontsize=8)
        axes[0, left + (width + 1) // 2].set_title(f"{name}: nearest first", fontsize=9)
    figure.text(0.5, 0.012, "\n".join(legend), ha="center", fontsize=8)
    if captions:
        _place_squares(axes, figsize)
    else:
        figure.tight_layout(rect=(0, (0.02 + 0.15 * len(legend)) / figsize[1], 1, 1), pad=0.3)
    figure.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.05)


def _place_squares(axes, figsize: tuple[float, float]) -> None:
    """Gives each image a square, in whose lower edge it stands, so that the captions of a row are level."""
    width, height = figsize
    for (row, column), ax in np.ndenumerate(axes):
        left, top = column * (_LARGE + _GAP), 0.3 + row * (_LARGE + _CAPTION)
        ax.set_position((left / width, 1 - (top + _LARGE) / height, _LARGE / width, _LARGE / height))
        ax.set_anchor("S")


def _draw(ax, image: np.ndarray, frame: str, caption: str = "") -> None:
    _, colour, style, width, *_ = FRAMES[frame]
    ax.axis("on")
    ax.set(xticks=[], yticks=[])
    grey = image.shape[-1] == 1
    ax.imshow(image[..., 0] if grey else image, cmap="gray_r" if grey else None, vmin=0, vmax=255)
    ax.set_xlabel(caption, fontsize=10, labelpad=3, parse_math=False)
    for spine in ax.spines.values():
        spine.set(edgecolor=colour, linestyle=style, linewidth=width)
