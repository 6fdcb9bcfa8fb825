"""A gallery: embeddings of images to search in, with their ids, labels and file names."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from grafit_jax.data.readers import photos
from grafit_jax.data.readers.photos import Images, Photo
from grafit_jax.errors import UserError, did_you_mean
from grafit_jax.retrieval import discovery, embeddings, neighbors
from grafit_jax.retrieval.embeddings import Features
from grafit_jax.retrieval.rerank import slices

# Most rows of which faiss learns an index.
_MOST_TRAINED = 2**18


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

    def choose_layer(self, name: str | None) -> str: ...

    def embed(self, images: Images, *, layer: str) -> np.ndarray: ...

    def embed_photos(
        self, found: Iterable[Photo], *, layer: str, normalize: bool, batch_size: int, progress: bool, skip: bool
    ) -> tuple[list[Photo], np.ndarray]: ...


class Gallery:
    """Embeddings of images to search in.

    Attributes:
      features: the embeddings [N, D], with ids, labels and file names [N].
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
        layer: str | None = None,
        labels: Iterable[str | None] | None = None,
        normalize: bool = True,
        batch_size: int = 64,
        progress: bool = False,
    ) -> "Gallery":
        """Embeds images; those that cannot be read are left out, with a warning.

        Args:
          model: a `grafit_jax.Model`.
          images: as for `Model.embed`. The id of a file is its path as given, the id of an image in memory its
            position. The folders of a file, or the columns of a CSV, name its classes; see `photos.each`. An image
            with a coarse class only is its own fine class where others have one.
          layer: see `Model.embed`.
          labels: fine class names [N], instead of the classes of folders or CSV; None or "" if unknown.
          normalize: see `Model.embed`.
          batch_size: see `Model.embed`.
          progress: see `Model.embed`.

        Raises:
          UserError: no readable image, an image listed twice, or another number of labels than images.
        """
        found = photos.each(images)
        features = _embedded(
            model, _labelled(found, labels), model.choose_layer(layer), normalize, batch_size, progress, known=None
        )
        return cls(features, model)

    @classmethod
    def load(cls, path: str | os.PathLike, model: Embedder | None = None) -> "Gallery":
        """Loads a gallery from a file of `save`, experiments/embed.py, or elsewhere; see `embeddings.load`.

        Args:
          path: a .npz, .parquet or .npy file.
          model: embeds queries and further images; without one, only images of the gallery can be queries.

        Raises:
          UserError: the file is missing or damaged, or its embeddings are those of another model.
        """
        return cls(embeddings.load(pathlib.Path(os.path.expanduser(path))), model)

    def save(self, path: str | os.PathLike, *, dtype: str | None = None) -> None:
        """Writes the gallery as .npz, .parquet or .npy with a .csv; see `embeddings.save`."""
        embeddings.save(pathlib.Path(os.path.expanduser(path)), self.features, dtype=dtype)

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        return f"Gallery({len(self)} images, {self.features.embedding.shape[1]} dimensions, layer {self.layer})"

    @property
    def layer(self) -> str:
        """The layer of the embeddings; if unknown the default one of the model, or "trunk" without a model."""
        usual = "trunk" if self.model is None else self.model.choose_layer(None)
        return self.features.made_by.get("layer", usual)

    def check_model(self, model: Embedder) -> None:
        """Raises UserError if the embeddings are those of another model; warns if their model is unknown."""
        layer = self.features.made_by.get("layer") or model.choose_layer(None)
        embeddings.check_alike("gallery", self.features.made_by, model.path, model.made_by(layer))

    def add(
        self,
        images: Images,
        *,
        labels: Iterable[str | None] | None = None,
        batch_size: int = 64,
        progress: bool = False,
    ) -> None:
        """Embeds images and appends them; arguments as for `build`.

        Raises:
          UserError: an image that the gallery has already, no model, or an error of `build`.
        """
        old, model = self.features, self._model()
        found = _labelled(photos.each(images, first=len(old)), labels)
        unit = bool(old.made_by.get("unit", True))
        new = _embedded(model, found, self.layer, unit, batch_size, progress, known=old)
        columns = {}
        for name in ("id", "label", "coarse_label", "filename"):
            parts = [getattr(features, name) for features in (old, new)]
            if any(part is not None for part in parts):
                if name == "label":  # a coarse class is its own fine class where others have one
                    parts = [features.finest if features.label is None else features.label for features in (old, new)]
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
        if not len(rows):
            return []
        embedding = self.features.embedding
        return self._hits(*neighbors.search(embedding[rows], embedding, k, query_ids=rows, gallery_ids=every))

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Returns the rows of images given by id, path or file name; a single string is one image.

        Raises:
          UserError: an image that is not in the gallery, or a file name that several images have.
        """
        names = self.features.id.astype(str)
        files = np.full(len(self), "") if self.features.filename is None else self.features.filename.astype(str)
        base = np.array([os.path.basename(file) for file in files])
        rows = []
        for query in [ids] if isinstance(ids, str) else map(str, ids):
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
                hint, first, last = did_you_mean(query, names[:10_000].tolist()), str(names[0]), str(names[-1])
                raise UserError(
                    f"found unknown id {query!r}{hint}; expected one of the gallery, {first!r} to {last!r}, or a file "
                    "name."
                )
            rows.append(found[0])
        return np.array(rows, int)

    def discover(self, *, within: str | None = None, k: int | None = None, most: int = 10) -> list[discovery.Group]:
        """Proposes finer classes by clustering the images of each known class; see `discovery.discover`."""
        return discovery.discover(self.features, within=within, k=k, most=most)

    def to_faiss(self, factory: str = "Flat") -> Any:
        """Returns a faiss index of the unit vectors by inner product, whose row i is image i of the gallery.

        Args:
          factory: description for `faiss.index_factory`, such as "Flat" (exact) or "IVF256,Flat". An index that is
            trained learns of at most 262,144 rows, drawn at random with a fixed seed.

        Raises:
          UserError: faiss is not installed.
        """
        faiss = _package("faiss", "faiss-cpu")
        embedding = self.features.embedding
        index = faiss.index_factory(embedding.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            drawn = np.random.default_rng(0).choice(len(self), min(len(self), _MOST_TRAINED), replace=False)
            index.train(embeddings.unit(embedding[np.sort(drawn)]))
        for rows in slices(*embedding.shape):  # of a gallery that may be larger than the memory
            index.add(embeddings.unit(embedding[rows]))
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
        return pandas.DataFrame(known | {"embedding": [*np.asarray(f.embedding, np.float32)]})

    def _model(self) -> Embedder:
        if self.model is None:
            raise UserError("gallery: found no model to embed images; use Gallery.load(path, model).")
        return self.model

    def _hits(self, similarity: np.ndarray, index: np.ndarray) -> list[list[Hit]]:
        f, finest = self.features, self.features.finest

        def text(column: np.ndarray | None, row: int) -> str:
            return "" if column is None else str(column[row])

        return [
            [Hit(str(f.id[i]), float(s), text(finest, i), text(f.filename, i)) for i, s in zip(near, sims, strict=True)]
            for near, sims in zip(index, similarity, strict=True)
        ]


def _labelled(found: Iterable[Photo], labels: Iterable[str | None] | None) -> Iterator[Photo]:
    """Yields the photos, with these labels as their only classes if they are given."""
    if labels is None:
        yield from found
        return
    missing: Any = object()
    for number, (photo, label) in enumerate(itertools.zip_longest(found, labels, fillvalue=missing)):
        if photo is missing or label is missing:
            more, fewer = ("images", "labels") if label is missing else ("labels", "images")
            raise UserError(f"labels: found more {more} than {fewer}, which are {number}; expected one for each image.")
        known = label is not None and label == label  # NaN stands for a missing value in pandas
        yield dataclasses.replace(photo, coarse="", fine=str(label) if known else "")


def _embedded(
    model: Embedder,
    found: Iterable[Photo],
    layer: str,
    normalize: bool,
    batch_size: int,
    progress: bool,
    *,
    known: Features | None,
) -> Features:
    """Embeds photos that are not among the `known` images."""
    kept, embedding = model.embed_photos(
        _new(found, known), layer=layer, normalize=normalize, batch_size=batch_size, progress=progress, skip=True
    )
    columns = {
        "label": [photo.fine or photo.coarse for photo in kept] if any(photo.fine for photo in kept) else None,
        "coarse_label": [photo.coarse for photo in kept],
        "filename": [photo.filename for photo in kept],
    }
    given: dict[str, Any] = {name: np.array(column) for name, column in columns.items() if column and any(column)}
    made_by = model.made_by(layer) | {"unit": normalize}
    return Features(embedding, np.array([photo.id for photo in kept]), **given, made_by=made_by)


def _new(found: Iterable[Photo], known: Features | None) -> Iterator[Photo]:
    """Yields the photos; raises UserError for one that is known or occurs twice, by its id or its file."""
    before: set[str] = set()
    if known is not None:
        before.update(known.id.astype(str).tolist())
        before.update(() if known.filename is None else known.filename.astype(str).tolist())
    seen: set[str] = set()
    for photo in found:
        names = {photo.id, photo.filename} - {""}
        if names & before:
            raise UserError(
                f"gallery: found image {photo.id}, which it has already; expected others, with other ids; add those, "
                "or build the gallery again."
            )
        if names & seen:
            raise UserError(f"images: found {photo.id} twice; expected each image once; leave one out.")
        seen |= names
        yield photo


def _package(name: str, installed: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f"found no {name}; use `pip install {installed}`.") from None
