"""Nearest neighbours of a few queries, as a table and as a picture."""

import pathlib
from collections.abc import Sequence

import numpy as np
import PIL.Image

from grafit_jax import evaluation, model
from grafit_jax.data.readers.decode import Unreadable, decode, decode_boxes
from grafit_jax.errors import UserError, did_you_mean, writing
from grafit_jax.experiment import Experiment
from grafit_jax.report import pictures
from grafit_jax.report.tables import plain_table
from grafit_jax.retrieval import neighbors
from grafit_jax.retrieval.embeddings import Features
from grafit_jax.state import TrainState
from grafit_jax.views.crops import RESIZE_MODES


def rows_of(gallery: Features, ids: Sequence[str]) -> np.ndarray:
    """Returns the rows of the gallery with these ids; raises UserError for an unknown id."""
    names = [str(name) for name in gallery.id]
    rows = {name: row for row, name in enumerate(names)}
    for query in ids:
        if query not in rows:
            hint = did_you_mean(query, names[:100_000])
            raise UserError(
                f"found unknown id {query!r}{hint}; expected one of the gallery, {names[0]!r} to {names[-1]!r}."
            )
    return np.array([rows[query] for query in ids])


def read_image(path: pathlib.Path, channels: int, *, size: int = 0, resize_mode: str = "squash") -> np.ndarray:
    """Reads an image file as uint8 [H, W, channels], RGB for three channels and grayscale for one.

    With size S > 0 it is resized to S x S, as in a run with that data.image_size and data.resize_mode.
    """
    try:
        image = decode_boxes(path, size, RESIZE_MODES[resize_mode])[0] if size else decode(path)
    except Unreadable as error:
        raise UserError(f"cannot read an image: {error}; expected an image file, such as PNG or JPEG.") from None
    return image if channels == 3 else np.asarray(PIL.Image.fromarray(image).convert("L"))[..., None]


def read_query(run: Experiment, path: pathlib.Path) -> np.ndarray:
    """Reads an image file as uint8 [H, W, C], in the same way as the images of the run's data set."""
    data = run.config.data
    return read_image(path, run.records["test"].image.shape[-1], size=data.image_size, resize_mode=data.resize_mode)


class FileImages(Sequence[np.ndarray]):
    """A lazy sequence of RGB images in files."""

    def __init__(self, files: Sequence[str]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row):
        return read_image(pathlib.Path(self._files[row]), 3)


def embed_images(run: Experiment, state: TrainState, images: Sequence[np.ndarray], layer: str) -> np.ndarray:
    """Embeds n images of any sizes one by one, at the evaluation size; returns float32 [n, D]."""
    model.check_layer(run, layer)
    embed_fn = evaluation.make_embed_fn(run.network, run.eval_views, batch_size=1)
    return np.concatenate([embed_fn(state.variables, image[None])[layer] for image in images])


def nearest(gallery: Features, k: int, *, rows: np.ndarray | None = None, embeddings: np.ndarray | None = None):
    """Returns similarity and index [n, k] for `rows` of the gallery, each excluding itself, or for `embeddings`."""
    if rows is None:
        assert embeddings is not None
        return neighbors.search(embeddings, gallery.embedding, k)
    return neighbors.search(
        gallery.embedding[rows], gallery.embedding, k, query_ids=rows, gallery_ids=np.arange(len(gallery))
    )


def table(names: Sequence[str], gallery: Features, similarity: np.ndarray, index: np.ndarray) -> str:
    """Returns a table with a line per neighbour: query, rank, id, similarity, and the gallery's labels and filename."""
    known = [name for name in ("label", "coarse_label", "filename") if getattr(gallery, name) is not None]
    lines = [
        [query, rank, gallery.id[i], f"{s:.4f}", *(getattr(gallery, name)[i] for name in known)]
        for query, row, similarities in zip(names, index, similarity, strict=True)
        for rank, (i, s) in enumerate(zip(row, similarities, strict=True), start=1)
    ]
    return plain_table(["query", "rank", "id", "similarity", *known], lines)


def picture(
    path: pathlib.Path,
    queries: Sequence[np.ndarray],
    images: Sequence[np.ndarray],
    gallery: Features,
    index: np.ndarray,
    *,
    rows: np.ndarray | None = None,
) -> None:
    """Draws queries and neighbours to a file, with frames by label if the queries are `rows` of the gallery."""
    sheet = []
    for number, (query, near) in enumerate(zip(queries, index, strict=True)):
        frames = ["unknown"] * len(near)
        if rows is not None:
            frames = [pictures.relation(gallery.label, gallery.coarser, rows[number], i) for i in near]
        sheet.append([(query, "query"), *((images[i], frame) for i, frame in zip(near, frames, strict=True))])
    with writing(path):
        pictures.contact_sheet(path, {"gallery": sheet})
