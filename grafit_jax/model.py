"""A trained network that embeds any images, without the data of its training and without TensorFlow."""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tqdm

from grafit_jax import evaluation, open_keys, parallel, saved
from grafit_jax.data.readers import decode, photos
from grafit_jax.data.readers.photos import Images, Photo
from grafit_jax.errors import UserError, warn
from grafit_jax.experiment import Experiment
from grafit_jax.gallery import Gallery
from grafit_jax.retrieval import metrics, neighbors
from grafit_jax.retrieval.embeddings import Features, unit
from grafit_jax.saved import card, hub
from grafit_jax.saved.description import Description
from grafit_jax.saved.folder import Stored
from grafit_jax.state import TrainState, target_part
from grafit_jax.views.crops import RESIZE_MODES

# Remedy for embeddings that are not finite.
_DIVERGED = "use an earlier checkpoint"


def load(where: str | os.PathLike, *, checkpoint: int | str = "newest") -> "Model":
    """Loads a trained model. The images of its training are not read and may be gone.

    Compiled programs are cached in ~/.cache/grafit_jax, unless JAX's compilation cache is configured.

    Args:
      where: a workdir of experiments/train.py, the folder of a saved model, or "hf:owner/name[@revision]" on the
        Hugging Face hub.
      checkpoint: "newest", or the step of a checkpoint of a workdir.

    Raises:
      UserError: there is no model, checkpoint or network connection, or the files are damaged, incomplete, of a newer
        version, or do not fit each other. A UserError is a ValueError.
    """
    parallel.use_compilation_cache()
    where = os.fspath(where)
    stored = saved.read(where, checkpoint)
    return Model(stored, where if where.startswith(open_keys.HUB) else os.path.abspath(os.path.expanduser(where)))


class Model:
    """A trained network; see `load`.

    Attributes:
      description: the network without its weights: config, image shape, class names.
      step: number of training steps.
      metrics: the metrics that its run recorded at this step, as fractions; empty if none.
      path: where it was loaded from.
    """

    def __init__(self, stored: Stored, path: str):
        self._stored = stored
        self.path: str = path
        self.step: int = stored.step
        self.metrics: Mapping[str, float] = stored.metrics
        self.description: Description = stored.description
        self._variables = parallel.replicate({kind: target_part(parts) for kind, parts in stored.variables.items()})
        self._embed_fns: dict[int, evaluation.EmbedFn] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that give embeddings: "trunk" and, with a projector, "projector" and "concat", both joined."""
        return self.description.layers

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Class names by level, from coarse to fine."""
        return dict(self.description.classes)

    @functools.cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that identify weights, network and preprocessing."""
        return self.description.digest(self._stored.variables)

    def made_by(self, layer: str) -> dict[str, Any]:
        """Returns what identifies embeddings of a layer in files; see `Features.made_by`."""
        return {"model": self.digest, "layer": layer, "step": self.step, "path": self.path}

    def choose_layer(self, name: str | None) -> str:
        """Returns `name`, for None the layer of the headline metrics; raises UserError unless it is in `layers`."""
        name = self.description.headline if name is None else name
        if name not in self.layers:
            raise UserError(
                f"layer: found {name}; expected one of {', '.join(self.layers)}, the layers of method "
                f"{self.description.config.method}."
            )
        return name

    def embed(
        self,
        images: Images,
        *,
        layer: str | None = None,
        normalize: bool = True,
        batch_size: int = 64,
        progress: bool = False,
    ) -> np.ndarray:
        """Embeds images as the evaluation of the training does: read, resized, perhaps cropped, normalised.

        A large JPEG is decoded at a smaller size if it is given by its path, so its embedding differs a little from
        that of the same image in memory.

        Args:
          images: a file, a folder, a CSV with a column path, a PIL image, an array uint8 [H, W], [H, W, C] or
            [N, H, W, C], or an iterable of these, such as a list or a generator. See `photos.each`.
          layer: one of `layers`, see `evaluation.of_layer`; by default that of the headline metrics.
          normalize: whether to scale the embeddings to unit length; cosine similarity is then a dot product.
          batch_size: images per call of the network, over all devices.
          progress: whether to show a progress bar.

        Returns:
          float32 [N, D] in the order of the images; the files of a folder are sorted by name.

        Raises:
          UserError: no image, an image that cannot be read, or a layer that the network lacks.
        """
        _, embedding = self.embed_photos(
            photos.each(images), layer=layer, normalize=normalize, batch_size=batch_size, progress=progress, skip=False
        )
        return embedding

    def embed_photos(
        self,
        found: Iterable[Photo],
        *,
        layer: str | None,
        normalize: bool = True,
        batch_size: int = 64,
        progress: bool = False,
        skip: bool,
    ) -> tuple[list[Photo], np.ndarray]:
        """Embeds photos as `embed` does; returns those that could be read, without images in memory, and their rows.

        With `skip`, an unreadable photo is left out with a warning; otherwise it is an error.
        """
        layer = self.choose_layer(layer)
        if batch_size < 1:
            raise UserError(f"batch_size: found {batch_size}; expected at least 1.")
        kept: list[Photo] = []
        rows: list[np.ndarray] = []
        batch: list[np.ndarray] = []
        broken: list[str] = []
        for photo, image in self._decoded(tqdm.tqdm(found, unit="img", delay=1, disable=not progress), 2 * batch_size):
            if isinstance(image, decode.Unreadable):
                if not skip:
                    raise UserError(f"found an unreadable image: {image}; repair it or leave it out.")
                broken.append(str(image))
                continue
            kept.append(photo)
            batch.append(image)
            if len(batch) == batch_size:
                rows.append(self._embedded(batch, layer, batch_size))
                batch = []
        if batch:
            rows.append(self._embedded(batch, layer, batch_size))
        if broken:
            warn(
                f"skipped {len(broken)} of {len(kept) + len(broken)} images, which are unreadable, such as {broken[0]}"
            )
        if not rows:
            raise UserError("found no image that can be read; expected at least one.")
        embedding = np.concatenate(rows)
        neighbors.check_embeddings(f"{self.path}: {layer}", embedding, remedy=_DIVERGED)
        return kept, unit(embedding) if normalize else embedding

    def _decoded(self, found: Iterable[Photo], ahead: int) -> Iterator[tuple[Photo, np.ndarray | decode.Unreadable]]:
        """Yields each photo, without an image in memory, and its pixels; reads up to `ahead` files in advance."""
        waiting: collections.deque[Photo] = collections.deque()

        def readers():
            for photo in found:
                image = photo.image
                if photo.filename:
                    waiting.append(photo)
                    yield functools.partial(self.read, image)
                else:  # read at once: a generator may use the same memory for its next image
                    waiting.append(dataclasses.replace(photo, image=""))
                    yield functools.partial(_itself, decode.attempt(functools.partial(self.read, image)))

        for image in decode.decode_all(readers(), ahead):
            yield waiting.popleft(), image

    def read(self, image: decode.Source) -> np.ndarray:
        """Returns an image as the images of the training, uint8 [H, W, C]; raises `decode.Unreadable`."""
        shape = self.description.image_shape
        if isinstance(image, np.ndarray) and image.shape == shape:
            return image.copy()
        return decode.decode_to(image, shape, RESIZE_MODES[self.description.config.data.resize_mode])

    def _embedded(self, images: list[np.ndarray], layer: str, batch_size: int) -> np.ndarray:
        # A power of two: one image must not cost as much as a batch, and each size is compiled.
        size = min(batch_size, 1 << (len(images) - 1).bit_length())
        return evaluation.of_layer(self._embed_fn(size)(self._variables, np.stack(images)), layer)

    def _embed_fn(self, batch_size: int) -> evaluation.EmbedFn:
        if batch_size not in self._embed_fns:
            self._embed_fns[batch_size] = evaluation.make_embed_fn(
                self.description.network, self.description.views, batch_size=batch_size
            )
        return self._embed_fns[batch_size]

    def classify(
        self, images: Images, gallery: Gallery, *, k: int | None = None, temperature: float | None = None
    ) -> np.ndarray:
        """Returns the class of each image by the weighted vote of its k nearest neighbours in a labelled gallery.

        A neighbour votes for its finest known class.

        Args:
          images: see `embed`.
          gallery: embeddings of this model with labels; rows without a label have no vote.
          k: number of neighbours; None for the config's eval.knn_k, or all if the gallery is smaller.
          temperature: sigma of the votes exp(similarity / sigma); None for the config's eval.knn_temperature.

        Returns:
          class names [N].

        Raises:
          UserError: a gallery of another model or without labels, k above its size, a temperature that is not above
            0, or an error of `embed`.
        """
        if gallery.model is not self:
            gallery.check_model(self)
        labels = gallery.features.finest
        voters = np.zeros(0, bool) if labels is None else labels != ""
        if labels is None or not voters.any():
            raise UserError("gallery: found no labels; expected a gallery of labelled images, as folders of classes.")
        config = self.description.config.eval
        temperature = config.knn_temperature if temperature is None else temperature
        if not temperature > 0:
            raise UserError(f"temperature: found {temperature}; expected a number above 0, such as 0.05.")
        k = min(config.knn_k, int(voters.sum())) if k is None else k
        embedding = self.embed(images, layer=gallery.features.made_by.get("layer"))
        similarity, near = neighbors.search(embedding, gallery.features.embedding[voters], k)
        names, code = np.unique(labels[voters], return_inverse=True)
        return names[np.asarray(metrics.knn_classify(code[near], similarity, temperature))]

    def save(self, folder: str | os.PathLike) -> None:
        """Writes model.safetensors, config.json and README.md, a model card, which `load` and the hub read.

        Raises:
          UserError: the folder holds other files, or cannot be written.
        """
        path = pathlib.Path(os.path.expanduser(folder))
        saved.write(path, self._stored, card.text(self._stored, path.absolute().name))

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Uploads the saved model to the Hugging Face hub, through huggingface_hub; returns the address of the commit.

        Args:
          name: "owner/name"; created if needed.
          private: whether a new repository is private.

        Raises:
          UserError: huggingface_hub is not installed, the hub is unreachable, or it refuses.
        """
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            saved.write(pathlib.Path(folder), self._stored, card.text(self._stored, name))
            return hub.upload(pathlib.Path(folder), name, private=private)


def _itself(image: np.ndarray | decode.Unreadable) -> Any:
    return image


def of_run(run: Experiment, state: TrainState, path: str | os.PathLike) -> Model:
    """Returns the model of a loaded run, whose workdir is `path`."""
    described = saved.description.of(run.config, run.records)
    return Model(Stored(described, state.variables, int(state.step), {}), os.path.abspath(path))


def split_gallery(
    run: Experiment,
    state: TrainState,
    path: str | os.PathLike,
    split: str,
    *,
    layer: str | None = None,
    normalize: bool = True,
) -> Gallery:
    """Embeds a split of a loaded run, whose workdir is `path`; ids are "split/row", labels those of the data set."""
    model, records = of_run(run, state, path), run.records[split]
    layer = model.choose_layer(layer)
    embedded = run.embed_fn(state.variables, records.image)
    read = evaluation.readable(embedded)
    named = {
        name: np.array(level.names)[level.label[read]]
        for name, level in records.levels.items()
        if level.label is not None
    }
    embedding = evaluation.of_layer(embedded, layer, read)
    neighbors.check_embeddings(f"{path}: {layer} of split {split}", embedding, remedy=_DIVERGED)
    features = Features(
        embedding=unit(embedding) if normalize else embedding,
        id=np.array([f"{split}/{row}" for row in np.flatnonzero(read)]),
        label=named.pop(records.finest, None),
        coarse_label=named.pop("coarse", None),
        further=named,
        filename=None if records.filename is None else records.filename[read],
        made_by=model.made_by(layer) | {"unit": normalize},
    )
    return Gallery(features, model)
