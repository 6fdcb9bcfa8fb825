"""The embeddings of a whole split, each image once."""

import collections
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from grafit_jax import parallel, pulse
from grafit_jax.data.readers.folder import FolderImages
from grafit_jax.data.records import in_order
from grafit_jax.models import Network
from grafit_jax.views import augment

# The images of a whole split (`Records.image`) to embeddings by name: trunk and, where there is one, projector.
EmbedFn = Callable[[Any, Any], dict[str, np.ndarray]]


def make_embed_fn(network: Network, views: augment.Views, *, batch_size: int) -> EmbedFn:
    """`(variables, images) -> {"trunk": float32 [N, F], "projector": float32 [N, D], "class": int32 [N, 1]}`.

    On all devices. What the network has not is left out; "class" is what its classifier says. Of image files there is
    "unread" too, bool [N, 1]: those that could not be read, whose rows mean nothing.

    Images are only resized, perhaps cropped to their middle, and normalised. The last batch is padded, and the padding
    cut off: every image is embedded exactly once, whatever their number. Each process embeds its own part of them, and
    gets the embeddings of all: so all have to call it.

    It raises UserError where none of the images can be read any more.
    """
    num_devices = parallel.num_devices()
    per_device = -(-batch_size // num_devices)

    def embed(variables, images):
        out: Any = network.apply(variables, augment.plain_view(images, views=views), train=False)
        said = None if out.logits is None else jnp.argmax(out.logits, axis=-1, keepdims=True)
        named = {"trunk": out.features, "projector": out.projection, "class": said}
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

        nothing = [np.zeros((0, *images.shape[1:]), np.uint8)]  # a process without a part of its own goes along
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
        if "unread" in rows and 0 < np.sum(rows["unread"]) == len(images):  # on every process alike
            raise images.gone(len(images))
        return rows

    return embed_split


def readable(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """bool [N]: which of the images that a split's embeddings are of could be read."""
    number = len(next(iter(rows.values())))
    return ~rows.get("unread", np.zeros((number, 1), bool))[:, 0]
