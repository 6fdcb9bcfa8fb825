"""A gallery: embeddings of images to search in, with their ids, labels and file names."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from grafit_jax.data.readers import photos
from grafit_jax.data.readers.photos import Images, Photo
from grafit_jax.errors import UserError, did_you_mean
from grafit_jax.retrieval import embeddings, neighbors
from grafit_jax.retrieval.embeddings import Features


class Hit(NamedTuple):
    """A neighbour of a query.

    Attributes:
      id: its id in the gallery.
      similarity: the cosine similarity, at most 1.
      label: the name of its finest known class; "" if unknown.
      filename: the absolute path of its image; "" if unknown.
    """

    id: str
    similarity: float
    label: str
    filename: str


class Embedder(Protocol):
    """What a gallery uses of a `grafit_jax.Model`."""

    path: str

    def made_by(self, layer: str) -> dict[str, Any]: ...

    def embed(self, images: Images, *, layer: str) -> np.ndarray: ...

    def embed_photos(
        self, found: Iterable[Photo], *, layer: str, normalize: bool, batch_size: int, progress: bool, skip: bool
    ) -> tuple[list[Photo], np.ndarray]: ...


class Gallery:
    """Embeddings of images to search in.

    Attributes:
      features: the embeddings, float32 [N, D], with ids, labels and file names [N].
      model: the model that embeds queries and further images; None if there is none.
    """

    def __init__(self, features: Features, model: Embedder | None = None):
        self.features, self.model = features, model
        if model is not None:
            self.check_model(model)

    @classmethod
    def build(
        cls,
        model: Embedder,
        images: Images,
        *,
        layer: str = "trunk",
        labels: Sequence[str] | None = None,
        normalize: bool = True,
        batch_size: int = 64,
        progress: bool = False,
    ) -> "Gallery":
        """Embeds images; those that cannot be read are left out, with a warning.

        Args:
          model: a `grafit_jax.Model`.
          images: as for `Model.embed`. The id of a file is its path as given, the id of an image in memory its
            position. In a folder, the last two folders of a file are its coarse and fine class.
          layer: "trunk" or "projector".
          labels: class names [N], instead of those of the folders or the CSV.
          normalize: see `Model.embed`.
          batch_size: see `Model.embed`.
          progress: see `Model.embed`.

        Raises:
          UserError: no readable image, an image listed twice, or another number of labels than images.
        """
        found: Iterable[Photo] = photos.each(images)
        if labels is not None:
            listed = [*found]
            if len(labels) != len(listed):
                raise UserError(f"labels: found {len(labels)} for {len(listed)} images; expected one for each.")
            found = [dataclasses.replace(p, classes=(str(name),)) for p, name in zip(listed, labels, strict=True)]
        kept, embedding = model.embed_photos(
            found, layer=layer, normalize=normalize, batch_size=batch_size, progress=progress, skip=True
        )
        ids = np.array([photo.id for photo in kept])
        neighbors.check_ids("images", ids)
        classes = [photo.classes or ("",) for photo in kept]
        several = any(len(names) > 1 for names in classes)
        columns: dict[str, Any] = {
            "label": np.array([names[-1] for names in classes]),
            "coarse_label": np.array([names[0] for names in classes]) if several else None,
            "filename": np.array([photo.filename for photo in kept]),
        }
        known = {name: column for name, column in columns.items() if column is not None and np.any(column != "")}
        return cls(Features(embedding, ids, **known, made_by=model.made_by(layer)), model)

    @classmethod
    def load(cls, path: str | os.PathLike, model: Embedder | None = None) -> "Gallery":
        """Loads a gallery from a file of `save`, experiments/embed.py, or elsewhere; see `embeddings.load`.

        Args:
          path: a .npz, .parquet or .npy file.
          model: embeds queries and further images; without one, only images of the gallery can be queries.

        Raises:
          UserError: the file is missing or damaged, or its embeddings are those of another model.
        """
        return cls(embeddings.load(pathlib.Path(path)), model)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the gallery as .npz, .parquet or .npy with a .csv; raises UserError if that fails."""
        embeddings.save(pathlib.Path(path), self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        return f"Gallery({len(self)} images, {self.features.embedding.shape[1]} dimensions, layer {self.layer})"

    @property
    def layer(self) -> str:
        """The layer of the embeddings; "trunk" if unknown."""
        return self.features.made_by.get("layer", "trunk")

    def check_model(self, model: Embedder) -> None:
        """Raises UserError if the embeddings are those of another model; warns if their model is unknown."""
        embeddings.check_alike("gallery", self.features.made_by, model.path, model.made_by(self.layer))

    def add(self, images: Images, *, labels: Sequence[str] | None = None, **options: Any) -> None:
        """Embeds images and appends them; arguments as for `build`.

        Raises:
          UserError: an image that the gallery has already, no model, or an error of `build`.
        """
        new = Gallery.build(self._model(), images, layer=self.layer, labels=labels, **options).features
        again = np.isin(new.id, self.features.id.astype(str))
        if again.any():
            raise UserError(
                f"gallery: found {int(again.sum())} images that it has already, such as {new.id[again][0]}; expected "
                "new ids; add the other images only, or build the gallery again."
            )
        old, columns = self.features, {}
        for name in ("id", "label", "coarse_label", "filename"):
            parts = [getattr(features, name) for features in (old, new)]
            if any(part is not None for part in parts):
                filled = [
                    np.full(len(features), "") if part is None else part.astype(str)
                    for features, part in zip((old, new), parts, strict=True)
                ]
                columns[name] = np.concatenate(filled)
        further = {level: np.append(names.astype(str), np.full(len(new), "")) for level, names in old.further.items()}
        embedding = np.concatenate([old.embedding, new.embedding])
        self.features = Features(embedding, **columns, further=further, made_by=old.made_by)

    def search(self, queries: Images, k: int = 10) -> list[list[Hit]]:
        """Returns the k nearest images of each query, nearest first, by exact search.

        Args:
          queries: as for `Model.embed`. An image that is in the gallery finds itself first.
          k: number of neighbours, at most the size of the gallery.

        Raises:
          UserError: a query that cannot be read, k above the size of the gallery, or no model.
        """
        embedding = self._model().embed(queries, layer=self.layer)
        return self._hits(*neighbors.search(embedding, self.features.embedding, k))

    def search_ids(self, ids: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """Returns the k nearest other images of images in the gallery, given as for `rows`; needs no model."""
        rows, every = self.rows(ids), np.arange(len(self))
        embedding = self.features.embedding
        return self._hits(*neighbors.search(embedding[rows], embedding, k, query_ids=rows, gallery_ids=every))

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Returns the rows of images given by id, path or file name.

        Raises:
          UserError: an image that is not in the gallery, or a file name that several images have.
        """
        names = self.features.id.astype(str)
        files = np.full(len(self), "") if self.features.filename is None else self.features.filename.astype(str)
        base = np.array([os.path.basename(file) for file in files])
        rows = []
        for query in map(str, ids):
            found = np.flatnonzero(names == query)
            if not len(found):
                found = np.flatnonzero(files == os.path.abspath(query))
            if not len(found) and query:
                found = np.flatnonzero(base == query)
            if len(found) > 1:
                known = str(names[found[0]])
                raise UserError(
                    f"found {len(found)} images called {query!r}; expected one; use an id, such as {known!r}."
                )
            if not len(found):
                hint, first, last = did_you_mean(query, names[:100_000].tolist()), str(names[0]), str(names[-1])
                raise UserError(
                    f"found unknown id {query!r}{hint}; expected one of the gallery, {first!r} to {last!r}, or a file "
                    "name."
                )
            rows.append(found[0])
        return np.array(rows)

    def to_faiss(self, factory: str = "Flat") -> Any:
        """Returns a faiss index of the unit vectors by inner product, whose row i is image i of the gallery.

        Args:
          factory: description for `faiss.index_factory`, such as "Flat" (exact) or "IVF256,Flat".

        Raises:
          UserError: faiss is not installed.
        """
        faiss = _package("faiss", "faiss-cpu")
        embedding = self.features.embedding.astype(np.float32)
        embedding = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
        index = faiss.index_factory(embedding.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        index.train(embedding)
        index.add(embedding)
        return index

    def to_pandas(self) -> Any:
        """Returns a DataFrame with a row per image: id, the known labels and filename, and its embedding [D].

        Raises:
          UserError: pandas is not installed.
        """
        pandas = _package("pandas", "pandas")
        f = self.features
        columns = {"id": f.id, "label": f.label, "coarse_label": f.coarse_label, **f.further, "filename": f.filename}
        known = {name: column for name, column in columns.items() if column is not None}
        return pandas.DataFrame(known | {"embedding": [*f.embedding]})

    def _model(self) -> Embedder:
        if self.model is None:
            raise UserError("gallery: found no model to embed images; use Gallery.load(path, model).")
        return self.model

    def _hits(self, similarity: np.ndarray, index: np.ndarray) -> list[list[Hit]]:
        f = self.features
        label = f.label if f.label is not None else f.coarser

        def text(column: np.ndarray | None, row: int) -> str:
            return "" if column is None else str(column[row])

        return [
            [Hit(str(f.id[i]), float(s), text(label, i), text(f.filename, i)) for i, s in zip(near, sims, strict=True)]
            for near, sims in zip(index, similarity, strict=True)
        ]


def _package(name: str, installed: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f"found no {name}; use `pip install {installed}`.") from None
