"""Embed a split once, then every metric from that one pass (PAPER.md section 1)."""

import collections
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from grafit_jax import parallel, pulse
from grafit_jax.data.readers.folder import FolderImages
from grafit_jax.data.records import Records, in_order
from grafit_jax.models import Network
from grafit_jax.retrieval import neighbors
from grafit_jax.retrieval.evaluate import Embedded, evaluate
from grafit_jax.views import augment

# What to do about embeddings that a network gives that has diverged.
_DIVERGED = "lower optimizer.learning_rate or raise loss.temperature, in a new --workdir"


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
        block, part = per_device * num_devices, parallel.own_part(len(images))
        own = np.zeros(len(images), bool)
        own[part] = True
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


def evaluate_network(
    embed_fn: EmbedFn,
    variables: Any,
    records: dict[str, Records],
    config: Any,
    *,
    classified: bool = True,
    probe: bool = False,
) -> dict[str, float]:
    """All metrics of a network. `config` is the config's `eval`; `probe` adds those of a probe on the trunk's features.

    The first of `config.layers` gives the plain keys (`map`, `recall@1`, `coarse/knn_top1`, …), the others get their
    name as a prefix (`projector/map`); a projector that the method has not is left out. A classifier gives `top1` of
    the level that is trained on, unless its classes are others (`classified` is False).
    """
    embedded, labels = {}, {}
    for split, r in records.items():
        rows = embed_fn(variables, r.image)
        read = readable(rows)
        every = read.all()  # then without a copy of them
        embedded[split] = {name: x if every else x[read] for name, x in rows.items() if name != "unread"}
        for name in ("trunk", "projector"):
            if name in rows:
                neighbors.check_embeddings(f"{name} of split {split}", embedded[split][name], remedy=_DIVERGED)
        labels[split] = {level: label[read] for level, label in r.labels.items()}
    result: dict[str, float] = {}
    for i, name in enumerate(n for n in config.layers if n in embedded["test"]):
        train, test = (Embedded(embedded[s][name], labels[s]) for s in ("train", "test"))
        values = evaluate(
            test,
            train,
            ks=config.recall_at,
            knn_k=config.knn_k,
            knn_temperature=config.knn_temperature,
            probe=probe and name == "trunk",
        )
        result |= values if i == 0 else {f"{name}/{key}": value for key, value in values.items()}
    level = records["test"].train_level
    label = labels["test"].get("" if level == records["test"].finest else level)
    if classified and "class" in embedded["test"] and label is not None:
        prefix = "" if level == records["test"].finest else f"{level}/"
        result[f"{prefix}top1"] = float(np.mean(embedded["test"]["class"][:, 0] == label))
    return result
