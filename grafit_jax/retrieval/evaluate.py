"""Computes all metrics of the embeddings of a run, or of embeddings loaded from files."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from grafit_jax.errors import UserError, warn
from grafit_jax.retrieval import metrics, neighbors
from grafit_jax.retrieval.cluster_metrics import clustering_metrics
from grafit_jax.retrieval.embeddings import Features
from grafit_jax.retrieval.probe import probe as fit_probe


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Embeddings of a split, float32 [N, D], with the known labels [N] by level; see `Records.labels`."""

    embedding: np.ndarray
    labels: Mapping[str, np.ndarray]


def evaluate(
    test: Embedded,
    train: Embedded,
    *,
    ks: Sequence[int],
    knn_k: int,
    knn_temperature: float,
    probe: bool = False,
    clusters: bool = False,
) -> dict[str, float]:
    """Computes retrieval among the test images and from the training images, and k-NN classification by the latter.

    Retrieval among the test images excludes the query itself by id. Near-duplicates among them flatter it, but not
    retrieval from the training images. Both skip queries without an image of their class to find.

    Args:
      test: embeddings and labels of the test images.
      train: embeddings and labels of the training images.
      ks: values of k of recall@k.
      knn_k: number of training images that vote; at most all of them.
      knn_temperature: temperature sigma of the votes.
      probe: whether to train a linear probe; see `probe.probe`.
      clusters: whether to compare k-means clusters of the test images with their classes of the finest level, also
        within the level above it; see `clustering_metrics`.

    Returns:
      For each level of test labels, as fractions: `recall@k`, `map` and `queries_without_positive`. For the levels of
      training labels also `gallery/recall@k` (whether one of the k nearest training images has the query's class),
      `knn_top1` and, with `probe`, `probe_top1` and `probe_l2`. The metrics of the finest level have no prefix, the
      others the prefix `LEVEL/`. With `clusters` also those of `clustering_metrics`.

    Raises:
      UserError: embeddings that are zero or not finite, or too few images for the largest k.
    """
    result = metrics.retrieval_metrics(test.embedding, test.labels, ks=ks, knn_k=0)
    found = [k for k in ks if k <= len(train.embedding)]
    similarity, near = neighbors.search(test.embedding, train.embedding, min(max(knn_k, *ks), len(train.embedding)))
    for name, labels in test.labels.items():
        if name in train.labels:
            prefix, label_of_near = f"{name}/" if name else "", train.labels[name][near]
            known = np.isin(labels, train.labels[name])
            for k, hits in metrics.recall_at_k(label_of_near, labels, found).items() if found else ():
                share = np.mean(np.asarray(hits)[known], dtype=np.float64) if known.any() else 0.0
                result[f"{prefix}gallery/recall@{k}"] = float(share)
            vote = metrics.knn_classify(label_of_near[:, :knn_k], similarity[:, :knn_k], knn_temperature)
            result[f"{prefix}knn_top1"] = float(np.mean(np.asarray(vote) == labels))
            if probe:
                result |= _probed(name, train.embedding, train.labels[name], test.embedding, labels)
    return result | (_clustered(test.embedding, test.labels) if clusters else {})


def evaluate_features(
    queries: Features,
    gallery: Features | None,
    *,
    leave_out: bool,
    ks: Sequence[int],
    knn_k: int,
    knn_temperature: float,
    probe: bool = False,
    clusters: bool = False,
) -> dict[str, float]:
    """Computes all metrics of loaded embeddings at each level that both sides have.

    Args:
      queries: the queries. Without a gallery, each is excluded from its own neighbours.
      gallery: the gallery; None for the queries themselves.
      leave_out: whether equal ids (or file names, if no id is on both sides) mean the same image, which is then
        excluded from the neighbours.
      ks, knn_k, knn_temperature: as for `metrics.retrieval_metrics`.
      probe: whether to train a linear probe on the gallery and test it on the queries; see `probe.probe`.
      clusters: whether to compare k-means clusters of the queries with their classes of the finest level, also within
        the level above it; see `clustering_metrics`.

    Returns:
      The metrics of `metrics.retrieval_metrics`, with `probe` `probe_top1` and `probe_l2` of each level, and with
      `clusters` those of `clustering_metrics`.

    Raises:
      UserError: no common level of labels that is complete, no common image with `leave_out`, a probe without a
        gallery, or an error of `metrics.retrieval_metrics`.
    """
    ids: dict[str, np.ndarray] = {}
    if gallery is None and probe:
        raise UserError("found --probe without --gallery; pass the training embeddings as --gallery.")
    if gallery is None:
        gallery, leave_out = queries, True
    if leave_out:
        # Ids may be strings. Joint integer codes keep their order.
        code = np.unique(np.concatenate(_identities(queries, gallery)), return_inverse=True)[1]
        ids = {"query_ids": code[: len(queries)], "gallery_ids": code[len(queries) :]}
    both = [name for name in queries.levels if name in gallery.levels]
    if not both:
        raise UserError("found no level of labels on both sides; expected label, coarse_label or another common level.")
    for name in [*both]:
        sides = {id(side): side for side in (queries, gallery)}.values()
        if unlabelled := sum(int(np.sum(side.levels[name].astype(str) == "")) for side in sides):
            both.remove(name)
            left_out = f"found {unlabelled} images without a {name or 'fine'} label; expected one for every image"
            if not both:
                raise UserError(f"{left_out}; leave these images out.")
            warn(f"{left_out}; left out this level")
    levels = [{name: side.levels[name] for name in both} for side in (queries, gallery)]
    result = metrics.retrieval_metrics(
        queries.embedding, levels[0], gallery.embedding, levels[1],
        ks=ks, knn_k=knn_k, knn_temperature=knn_temperature, **ids,
    )  # fmt: skip
    for name in both if probe else ():
        result |= _probed(name, gallery.embedding, gallery.levels[name], queries.embedding, queries.levels[name])
    if clusters:
        result |= _clustered(queries.embedding, {name: queries.levels[name] for name in both})
    return result


def _identities(queries: Features, gallery: Features) -> list[np.ndarray]:
    """Returns what identifies the images of both sides: their ids or, if they have none in common, their file names."""
    for name in ("id", "filename"):
        sides = [getattr(side, name) for side in (queries, gallery)]
        if all(side is not None for side in sides):
            sides = [side.astype(str) for side in sides] if name == "filename" else sides
            unique = name == "id" or all(len({*side.tolist()}) == len(side) for side in sides)
            if unique and np.isin(sides[0], sides[1]).any():
                return sides
    raise UserError(
        "found no image on both sides, by id or file name; expected the queries in the gallery; remove --leave_out."
    )


def _clustered(embedding: np.ndarray, labels: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns `clustering_metrics` of the finest level, under its prefix, and within the level above it."""
    *coarser, finest = sorted(labels, key=lambda name: name == "")  # the others are from coarse to fine
    found = clustering_metrics(embedding, labels[finest], labels[coarser[-1]] if coarser else None)
    return {f"{finest}/{key}" if finest else key: value for key, value in found.items()}


def _probed(level: str, *arguments: np.ndarray) -> dict[str, float]:
    """Runs `probe.probe` and returns its results under their metric names."""
    return {f"{level}/probe_{key}" if level else f"probe_{key}": v for key, v in fit_probe(*arguments).items()}
