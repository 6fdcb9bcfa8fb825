"""The loss of a method, composed of `losses`: Eq. 4 of the paper, and the mixtures of protocol "maskcon"."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from grafit_jax import losses, queue_losses
from grafit_jax.memory import Memory, Queue
from grafit_jax.methods import Method
from grafit_jax.models import Outputs

# Metric name -> (sum, count) over examples; the host computes the mean.
Totals = dict[str, tuple[Array, Array]]


class KnnLevel(NamedTuple):
    """A label level of the k-NN loss.

    Attributes:
      name: its name.
      weight: weight of its loss.
      of_label: int32 [C], its class for each training label.
    """

    name: str
    weight: float
    of_label: np.ndarray


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss function of a method.

    Attributes:
      method: the method.
      loss: the group `loss` of the config.
      num_views: T of the instance loss.
      axis_name: the mapped device axis, or None.
      levels: levels of the k-NN loss; empty for the training labels alone.
    """

    method: Method
    loss: Any
    num_views: int
    axis_name: str | None
    levels: tuple[KnnLevel, ...] = ()

    def __call__(
        self,
        out: Outputs,
        targets: Array | None,
        batch: dict[str, Array],
        memory: Memory | None,
        queue: Queue | None,
        class_weights: Array | None = None,
    ) -> tuple[Array, Totals]:
        """Computes the loss of each example and the totals of its terms.

        Args:
          out: outputs of the online network for the T*B views, ordered by view; supervised losses use the first view
            only (appendix B.1).
          targets: projections of the target network for the same T*B views, or for B key views; constants.
          batch: label int32 [B], coarse classes or clusters, and id int32 [B]; mixed images also have other_label int32
            [B] and share float32 [B], see `views.mixing`.
          memory: the rows of this device before the step.
          queue: the queue before the step.
          class_weights: float [C, D], the weight vectors of a classifier over projections; constants.

        Returns:
          The loss, float32 [B], and the totals.
        """
        label = batch["label"]
        first = jax.tree.map(lambda x: x[: len(label)], out)
        supervised_weight, instance_weight = self.method.weights(
            instance_weight=self.loss.instance_weight, weight=self.loss.maskcon_weight
        )
        loss, terms = jnp.zeros(len(label)), {}
        if self.method.supervised is not None:
            term, totals = self._supervised(first, targets, batch, memory, queue)
            loss, terms = loss + supervised_weight * term, totals
        if self.method.instance == "predict":
            assert targets is not None
            term = losses.instance_loss(self._by_view(out.prediction), self._by_view(targets))
            loss, terms["instance_loss"] = loss + instance_weight * term, total(term)
        elif self.method.instance is not None:
            assert targets is not None and queue is not None
            keys, temperature = (first.projection, targets, queue.embedding), self.loss.temperature
            if self.method.instance == "info_nce":
                term = queue_losses.info_nce(*keys, temperature=temperature)
            elif self.method.instance == "own_class":
                term = queue_losses.own_class_info_nce(*keys, label, queue.label, temperature=temperature)
            else:
                assert class_weights is not None
                term = queue_losses.angular_info_nce(*keys, label, queue.label, class_weights, temperature=temperature)
            loss, terms[self.method.instance] = loss + instance_weight * term, total(term)
        return loss, terms | {"loss": total(loss)}

    def _supervised(self, first, targets, batch, memory, queue) -> tuple[Array, Totals]:
        label, temperature = batch["label"], self.loss.temperature
        if self.method.supervised == "cross_entropy":
            return self._cross_entropy(first.logits, batch)
        if self.method.supervised == "knn":
            term, totals = self._knn(first.projection, label, batch["id"], memory)
            if not self.method.cosine:
                return term, totals
            cosine, of_classifier = self._cross_entropy(first.logits / temperature, batch)
            return term + cosine, totals | of_classifier
        of_queue: dict[str | None, Callable[..., Array]] = {
            "supcon": queue_losses.supcon_queue,
            "spread": functools.partial(queue_losses.spread, weight=self.loss.maskcon_weight),
            "maskcon": functools.partial(
                queue_losses.maskcon,
                soft_temperature=self.loss.maskcon_temperature,
                weight=self.loss.maskcon_weight,
            ),
        }
        term = of_queue[self.method.supervised](
            first.projection, targets, queue.embedding, label, queue.label, temperature=temperature
        )
        alone = jnp.all(queue.label != label[:, None], axis=1)
        return term, {str(self.method.supervised): total(term), "without_positive": total(alone)}

    def _cross_entropy(self, logits: Array, batch: dict[str, Array]) -> tuple[Array, Totals]:
        """Returns the cross-entropy of a classifier, and its accuracy."""
        label, smoothing = batch["label"], self.loss.label_smoothing
        term = losses.cross_entropy(logits, label, smoothing=smoothing)
        if "other_label" in batch:  # a mixed image has two labels
            other = losses.cross_entropy(logits, batch["other_label"], smoothing=smoothing)
            term = batch["share"] * term + (1 - batch["share"]) * other
        accuracy = jnp.argmax(logits, -1) == label
        classes = "cluster" if self.method.uses_clusters else "coarse"
        return term, {"cross_entropy": total(term), f"{classes}_accuracy": total(accuracy)}

    def _knn(self, projection: Array, label: Array, own_slot: Array, memory: Memory) -> tuple[Array, Totals]:
        """Returns the k-NN loss, or the weighted sum of those of several levels, whose memory is the same."""
        parts = [
            (f"_{level.name}", level.weight, _at(level, label), _at(level, memory.label)) for level in self.levels
        ] or [("", 1.0, label, memory.label)]
        loss, terms = jnp.zeros(len(label)), {}
        for suffix, level_weight, of_batch, of_memory in parts:
            term, weight = losses.knn_loss_and_weight(
                projection,
                of_batch,
                memory.embedding,
                of_memory,
                temperature=self.loss.temperature,
                own_slot=own_slot,
                axis_name=self.axis_name,
            )
            loss = loss + level_weight * term
            terms[f"knn_loss{suffix}"] = (jnp.sum(term), jnp.sum(weight))
            terms[f"without_positive{suffix}"] = total(1.0 - weight)
        return loss, terms

    def _by_view(self, x: Array | None) -> Array:
        assert x is not None
        return x.reshape(self.num_views, -1, x.shape[-1])


def _at(level: KnnLevel, label: Array) -> Array:
    """Returns the classes at a level; -1, which marks empty slots of the memory, stays."""
    return jnp.where(label < 0, -1, jnp.asarray(level.of_label)[label])


def total(per_example: Array) -> tuple[Array, Array]:
    """Returns (sum, count)."""
    return jnp.sum(per_example.astype(jnp.float32)), jnp.asarray(per_example.size, jnp.float32)


class EpochMeans:
    """The running mean of each metric over the steps of an epoch."""

    def __init__(self, sums: dict[str, list[float]] | None = None, seconds: float = 0.0):
        """Starts an epoch, or resumes one, given what `record` returned."""
        self._sums, self._seconds = dict(sums or {}), seconds
        self._began, self._totals = time.perf_counter(), list[Totals]()

    def add(self, totals: Totals) -> None:
        self._totals.append(totals)  # fetched later, so that steps do not wait for the host

    def record(self) -> dict[str, Any]:
        """Waits for the steps; returns their sums and counts, and the seconds of the epoch so far, for JSON."""
        for totals in jax.device_get(self._totals):
            for name, values in totals.items():
                self._sums[name] = [a + float(b) for a, b in zip(self._sums.get(name, (0.0, 0.0)), values, strict=True)]
        self._totals = []
        return {"sums": self._sums, "seconds": self._seconds + time.perf_counter() - self._began}

    def means(self) -> dict[str, float]:
        """Returns the mean of each metric as of the last `record`."""
        return {name: value / count if count else 0.0 for name, (value, count) in self._sums.items()}


def guessing(
    method: Method,
    labels: np.ndarray,
    num_classes: int,
    *,
    levels: Sequence[KnnLevel] = (),
    queue_size: int,
    weight: float,
) -> dict[str, float]:
    """Returns the mean of each softmax loss for a network that guesses, with equal probabilities.

    Args:
      method: the method.
      labels: int [N], the training labels.
      num_classes: C.
      levels: the levels of the k-NN loss, as in `Objective`.
      queue_size: K; each class has the same share of the queue as of the training images.
      weight: w, the weight of the supervised term.
    """
    num_same = np.bincount(labels)[labels]
    terms = {"cross_entropy": math.log(num_classes)} if method.classifies else {}
    if method.supervised == "knn":
        of_level = {f"knn_loss_{level.name}": level.of_label[labels] for level in levels} or {"knn_loss": labels}
        for name, of_images in of_level.items():
            others = np.bincount(of_images)[of_images] - 1
            if np.any(others):
                terms[name] = float(np.mean(np.log((len(labels) - 1) / others[others > 0])))
    if method.uses_queue:
        keys = queue_size * num_same / len(labels)
        repel, attract = np.mean(np.log1p(keys)), np.mean(np.log1p(queue_size - keys))
        of_queue = {
            **dict.fromkeys(("supcon", "maskcon", "info_nce"), math.log(queue_size + 1)),
            "spread": float(weight * attract + (1 - weight) * repel),
            **dict.fromkeys(("angular", "own_class"), float(repel)),
        }
        terms |= {name: loss for name, loss in of_queue.items() if name in (method.supervised, method.instance)}
    return terms
