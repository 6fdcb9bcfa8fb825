"""All metrics of embeddings: of a run's test images, and of embeddings from files, this project's or anybody's."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from grafit_jax.errors import UserError
from grafit_jax.retrieval import metrics, neighbors
from grafit_jax.retrieval.embeddings import Features
from grafit_jax.retrieval.probe import probe as fit_probe


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A split as float32 [N, D] embeddings with the labels that are known, by level: see `Records.labels`."""

    embedding: np.ndarray
    labels: Mapping[str, np.ndarray]


def evaluate(
    test: Embedded, train: Embedded, *, ks: Sequence[int], knn_k: int, knn_temperature: float, probe: bool = False
) -> dict[str, float]:
    """Retrieval of test images among the other test images, and k-NN votes of the training images, as fractions.

    Every level of labels that the test images have gives `recall@k` and `map`, and where the training images have it
    too, `knn_top1` and, with `probe`, `probe_top1` and `probe_l2`: those of the finest level are named so, the others
    `LEVEL/map` and so on. One search serves all.
    Retrieval leaves out the query itself by id, and queries without another image of their class, which are counted in
    `queries_without_positive`.

    Raises:
      UserError: embeddings that are not finite or zero, or more neighbours asked than there are images.
    """
    result = metrics.retrieval_metrics(test.embedding, test.labels, ks=ks, knn_k=0)
    similarity, near = neighbors.search(test.embedding, train.embedding, min(knn_k, len(train.embedding)))
    for name, labels in test.labels.items():
        if name in train.labels:
            vote = metrics.knn_classify(train.labels[name][near], similarity, knn_temperature)
            result[f"{name}/knn_top1" if name else "knn_top1"] = float(np.mean(np.asarray(vote) == labels))
            if probe:
                result |= _probed(name, train.embedding, train.labels[name], test.embedding, labels)
    return result


def evaluate_features(
    queries: Features,
    gallery: Features | None,
    *,
    leave_out: bool,
    ks: Sequence[int],
    knn_k: int,
    knn_temperature: float,
    probe: bool = False,
) -> dict[str, float]:
    """All metrics of embeddings from anywhere, at every level that both sides have; see `metrics.retrieval_metrics`.

    Args:
      queries: each is left out of its own neighbours, if there is no gallery.
      gallery: the images to be found, or None: the queries.
      leave_out: the ids of both sides mean the same images: a query is left out of its neighbours in the gallery too.
      ks, knn_k, knn_temperature: as for `metrics.retrieval_metrics`.
      probe: whether a probe is trained on the gallery's embeddings and tested on the queries'; see `probe.probe`.

    Raises:
      UserError: no labels to judge by, a probe without a gallery, or as `metrics.retrieval_metrics`.
    """
    ids: dict[str, np.ndarray] = {}
    if gallery is None and probe:
        raise UserError("found --probe without --gallery: want the training embeddings, which the probe is trained on.")
    if gallery is None:
        gallery, leave_out = queries, True
    if leave_out:
        # Ids may be strings. As codes of both sides they keep their order.
        code = np.unique(np.concatenate([queries.id, gallery.id]), return_inverse=True)[1]
        ids = {"query_ids": code[: len(queries)], "gallery_ids": code[len(queries) :]}
    both = queries.levels.keys() & gallery.levels.keys()
    if not both:
        raise UserError("found no labels on both sides to judge by: want label, coarse_label or both.")
    result = metrics.retrieval_metrics(
        queries.embedding, queries.levels, gallery.embedding, gallery.levels,
        ks=ks, knn_k=knn_k, knn_temperature=knn_temperature, **ids,
    )  # fmt: skip
    for name in both if probe else ():
        result |= _probed(name, gallery.embedding, gallery.levels[name], queries.embedding, queries.levels[name])
    return result


def _probed(level: str, *arguments: np.ndarray) -> dict[str, float]:
    """What `probe.probe` finds, by the names of metrics."""
    return {f"{level}/probe_{key}" if level else f"probe_{key}": v for key, v in fit_probe(*arguments).items()}
