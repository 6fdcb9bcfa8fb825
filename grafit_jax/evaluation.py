"""Embeds a whole split, each image once."""

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from grafit_jax import parallel, pulse
from grafit_jax.data.readers.folder import FolderImages
from grafit_jax.data.records import in_order
from grafit_jax.models import Network
from grafit_jax.retrieval.embeddings import unit
from grafit_jax.views import augment

# (variables, images of a split) -> name -> rows; see `make_embed_fn`.
EmbedFn = Callable[[Any, Any], dict[str, np.ndarray]]


def eval_views(config: ml_collections.ConfigDict) -> augment.Views:
    """Returns the preprocessing in evaluation: the whole image, or the centre crop of `eval.crop`."""
    views = augment.Views(**{k: v for k, v in config.views.items() if k != "num_views"})
    size = config.eval.size or views.size
    resize = 0 if config.eval.crop == "whole" else config.eval.resize or augment.resize_for(size)
    return dataclasses.replace(views, size=size, resize=resize)


def make_embed_fn(network: Network, views: augment.Views, *, batch_size: int) -> EmbedFn:
    """Returns `(variables, images) -> {"trunk": float32 [N, F], "projector": float32 [N, D], "class": int32 [N, 1]}`.

    "projector" is left out for a network without one, "class" (the predicted class) for one without a classifier. For
    image files there is also "unread", bool [N, 1]: true for images that could not be read, whose rows are undefined.

    Images are resized, center-cropped if `views` say so, and normalised. The last batch is padded and the padding cut
    off, so every image is embedded exactly once. Each process embeds its own part and receives all rows, so all
    processes must call the function. It raises UserError if no image can be read.
    """
    num_devices = parallel.num_devices()
    per_device = -(-batch_size // num_devices)

    def embed(variables, images):
        out: Any = network.apply(variables, augment.plain_view(images, views=views), train=False)
        predicted = None if out.logits is None else jnp.argmax(out.logits, axis=-1, keepdims=True)
        named = {"trunk": out.features, "projector": out.projection, "class": predicted}
        return {name: x for name, x in named.items() if x is not None}

    pmapped = parallel.pmap(embed, in_axes=(None, 0))

    def embed_split(variables, images):
        block, own = per_device * num_devices, np.zeros(len(images), bool)
        own[parallel.own_part(len(images))] = True
        mine = images if own.all() else images[own]
        rows: dict[str, np.ndarray] = {}

        def fetch(first, outputs):
            for name, of_devices in outputs.items():
                x = np.asarray(of_devices).reshape(block, -1)
                if name not in rows:
                    rows[name] = np.empty((len(mine), x.shape[1]), x.dtype)
                found = rows[name][first : first + block]
                found[:] = x[: len(found)]

        nothing = [np.zeros((0, *images.shape[1:]), np.uint8)]  # a process without images takes part in the collectives
        ahead: collections.deque[tuple[int, Any]] = collections.deque()  # the devices are one batch ahead of the host
        batches = pulse.parts(
            in_order(mine, block) if len(mine) else nothing, "embedding images", -(-len(mine) // block) or 1
        )
        for i, batch in enumerate(batches):
            if len(batch) < block:
                batch = np.pad(batch, [(0, block - len(batch))] + [(0, 0)] * (batch.ndim - 1))
            batch = batch.reshape(num_devices, per_device, *batch.shape[1:])
            ahead.append((i * block, pmapped(variables, parallel.shard(batch))))
            if len(ahead) > 1:
                fetch(*ahead.popleft())
        fetch(*ahead.popleft())
        if isinstance(mine, FolderImages):
            rows["unread"] = np.isin(np.arange(len(mine)), [*mine.unread])[:, None]
        rows = {name: parallel.gather(x, len(images)) for name, x in rows.items()}
        if "unread" in rows and 0 < np.sum(rows["unread"]) == len(images):  # the same on every process
            raise images.gone(len(images))
        return rows

    return embed_split


def of_layer(rows: Mapping[str, np.ndarray], layer: str, kept: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Returns the embeddings of a layer, float32 [N, D], of the `kept` rows of `make_embed_fn`.

    "concat" is the trunk's features beside the projections, each of unit length, so that its cosine similarity is the
    mean of theirs.
    """
    if layer != "concat":
        return rows[layer][kept]
    return np.concatenate([unit(rows[part][kept]) for part in ("trunk", "projector")], axis=1)


def readable(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns bool [N]: which rows of `make_embed_fn` belong to images that could be read."""
    number = len(next(iter(rows.values())))
    return ~rows.get("unread", np.zeros((number, 1), bool))[:, 0]
