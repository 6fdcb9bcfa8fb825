"""Search results: a table for the terminal, and a picture with the images, their labels and similarities."""

import itertools
import os
import pathlib
import textwrap
from collections.abc import Callable, Sequence

import numpy as np

from grafit_jax.data.readers import decode
from grafit_jax.errors import UserError, writing
from grafit_jax.gallery import Gallery, Hit
from grafit_jax.report import pictures
from grafit_jax.runs.tables import plain_table

# Shown in place of an image that cannot be read.
MISSING = np.full((48, 48, 3), 160, np.uint8)
# Longer side in pixels of an image in a picture, and characters in a line of its caption.
_SIDE, _LINE = 400, 22


def table(queries: Sequence[str], hits: Sequence[Sequence[Hit]], gallery: Gallery) -> str:
    """Returns a table with a line per neighbour: query, rank, id, similarity and what the gallery knows of it.

    File names are left out where they only repeat the ids.
    """
    f = gallery.features
    row_of = {str(name): row for row, name in enumerate(f.id)}
    known = {"label": f.label, "coarse_label": f.coarse_label, "filename": f.filename}
    columns = {name: column.astype(str).tolist() for name, column in known.items() if column is not None}
    if "filename" in columns and all(map(str.endswith, columns["filename"], row_of)):
        del columns["filename"]
    lines = [
        [query, rank, hit.id, f"{hit.similarity:.4f}", *(column[row_of[hit.id]] for column in columns.values())]
        for query, of_query in zip(queries, hits, strict=True)
        for rank, hit in enumerate(of_query, start=1)
    ]
    shown = [[" ".join(str(cell).splitlines()) for cell in line] for line in lines]
    return plain_table(["query", "rank", "id", "similarity", *columns], shown)


def picture(
    path: pathlib.Path,
    queries: Sequence[tuple[str, np.ndarray]],
    hits: Sequence[Sequence[Hit]],
    gallery: Gallery,
    image_of: Callable[[int], np.ndarray],
    rows: Sequence[int] | None = None,
) -> None:
    """Draws queries and neighbours with names and similarities, framed by label if the queries are in the gallery.

    Args:
      path: the output file.
      queries: name and image of each query.
      hits: its neighbours.
      gallery: the gallery.
      image_of: maps a row of the gallery to its image.
      rows: the rows of the queries in the gallery; None for other images.

    Raises:
      UserError: an image cannot be read, or the file cannot be written.
    """
    f = gallery.features
    row_of = {str(name): row for row, name in enumerate(f.id)}
    sheet: list[list[pictures.Thumbnail]] = []
    for number, ((name, image), near) in enumerate(zip(queries, hits, strict=True)):
        row = None if rows is None else rows[number]
        label = "" if row is None or f.finest is None else f.finest[row]
        drawn: list[pictures.Thumbnail] = [(image, "query", _caption(name, label))]
        for hit in near:
            other = row_of[hit.id]
            frame = "unknown" if row is None else pictures.relation(f.label, f.coarser, row, other)
            drawn.append((image_of(other), frame, _caption(hit.label or hit.id, f"{hit.similarity:.3f}")))
        sheet.append(drawn)
    with writing(path):
        pictures.contact_sheet(path, {"gallery": sheet}, captions=True)


def read(image: decode.Source) -> np.ndarray:
    """Reads an image for a picture, uint8 [H, W, 3] with at most 400 pixels on its longer side.

    Raises:
      UserError: it cannot be read.
    """
    try:
        pixels = decode.decode(image)
    except decode.Unreadable as error:
        raise UserError(f"cannot read an image: {error}; expected an image file where the gallery says.") from None
    step = -(-max(pixels.shape[:2]) // _SIDE)
    return pixels[::step, ::step]


def _caption(name: str, more: str) -> str:
    """Returns a name, of a file its last part, in at most two lines that fit below an image, and one more line."""
    name = os.path.basename(name) if pathlib.PurePath(name).suffix else name
    lines = [textwrap.wrap(text, _LINE, max_lines=n, placeholder="…") for text, n in ((name, 2), (more, 1))]
    return "\n".join(itertools.chain(*lines))
