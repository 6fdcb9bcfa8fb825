"""Nearest images of a few queries: as a table and as a picture."""

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
    """The rows of the gallery with these ids; UserError for one that is not there."""
    names = [str(name) for name in gallery.id]
    place = {name: row for row, name in enumerate(names)}
    for wanted in ids:
        if wanted not in place:
            hint = did_you_mean(wanted, names[:100_000])
            raise UserError(f"unknown id {wanted!r}{hint}: the gallery has {names[0]!r} to {names[-1]!r}.")
    return np.array([place[wanted] for wanted in ids])


def read_image(path: pathlib.Path, channels: int, *, size: int = 0, resize_mode: str = "squash") -> np.ndarray:
    """uint8 [H, W, channels] of an image file, RGB for three channels and grey for one; see `decode.decode`.

    With size S > 0 it is made S x S as the images of a run with these data.image_size and data.resize_mode were.
    """
    try:
        image = decode_boxes(path, size, RESIZE_MODES[resize_mode])[0] if size else decode(path)
    except Unreadable as error:
        raise UserError(f"an image cannot be read: {error}; want PNG, JPEG or the like.") from None
    return image if channels == 3 else np.asarray(PIL.Image.fromarray(image).convert("L"))[..., None]


def read_query(run: Experiment, path: pathlib.Path) -> np.ndarray:
    """uint8 [H, W, C] of an image file, as the images of the run's own data set are read."""
    data = run.config.data
    return read_image(path, run.records["test"].image.shape[-1], size=data.image_size, resize_mode=data.resize_mode)


class FileImages(Sequence[np.ndarray]):
    """RGB images read from their files when they are asked for."""

    def __init__(self, files: Sequence[str]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row):
        return read_image(pathlib.Path(self._files[row]), 3)


def embed_images(run: Experiment, state: TrainState, images: Sequence[np.ndarray], layer: str) -> np.ndarray:
    """float32 [n, D] of images of any sizes, each embedded on its own, at the size of the evaluation."""
    model.check_layer(run, layer)
    embed_fn = evaluation.make_embed_fn(run.network, run.eval_views, batch_size=1)
    return np.concatenate([embed_fn(state.variables, image[None])[layer] for image in images])


def nearest(gallery: Features, k: int, *, rows: np.ndarray | None = None, embeddings: np.ndarray | None = None):
    """similarity and index [n, k] for queries that are `rows` of the gallery, or `embeddings` from outside."""
    if rows is None:
        assert embeddings is not None
        return neighbors.search(embeddings, gallery.embedding, k)
    return neighbors.search(
        gallery.embedding[rows], gallery.embedding, k, query_ids=rows, gallery_ids=np.arange(len(gallery))
    )


def table(names: Sequence[str], gallery: Features, similarity: np.ndarray, index: np.ndarray) -> str:
    """A line for every neighbour: query, rank, id, similarity, and what else the gallery knows."""
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
    """A PNG of queries and neighbours; frames by label where the queries are rows of the gallery."""
    sheet = []
    for number, (query, near) in enumerate(zip(queries, index, strict=True)):
        frames = ["unknown"] * len(near)
        if rows is not None:
            frames = [pictures.relation(gallery.label, gallery.coarser, rows[number], i) for i in near]
        sheet.append([(query, "query"), *((images[i], frame) for i, frame in zip(near, frames, strict=True))])
    with writing(path):
        pictures.contact_sheet(path, {"gallery": sheet})
