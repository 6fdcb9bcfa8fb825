"""The metrics of embeddings from files, this project's or anybody's."""

from collections.abc import Sequence

import numpy as np

from grafit_jax import evaluation
from grafit_jax.errors import UserError
from grafit_jax.retrieval import metrics
from grafit_jax.retrieval.embeddings import Features


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
      ks: of recall@k.
      knn_k: how many neighbours vote.
      knn_temperature: of their votes.
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
    if not queries.levels.keys() & gallery.levels.keys():
        raise UserError("found no labels on both sides to judge by: want label, coarse_label or both.")
    result = metrics.retrieval_metrics(
        queries.embedding, queries.levels, gallery.embedding, gallery.levels,
        ks=ks, knn_k=knn_k, knn_temperature=knn_temperature, **ids,
    )  # fmt: skip
    for name in queries.levels.keys() & gallery.levels.keys() if probe else ():
        result |= evaluation.probed(
            name, gallery.embedding, gallery.levels[name], queries.embedding, queries.levels[name]
        )
    return result
