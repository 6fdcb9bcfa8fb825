"""ClusterFit (docs/paper.md section 2): trains a new network on clusters of a coarse-trained network's features.

A run clusters once, when it starts, and stores the result as clusters.npz in its workdir. Resuming or evaluating it
needs neither the source run nor a second clustering.
"""

import dataclasses
import hashlib
import os
import pathlib

import numpy as np

from grafit_jax import parallel
from grafit_jax.data.files import read_json, read_npz
from grafit_jax.data.records import Level, Records
from grafit_jax.data.sources import usual_level
from grafit_jax.errors import UserError, reading
from grafit_jax.retrieval.clustering import Clusters
from grafit_jax.runs import workdir as workdir_lib

_FILE = "clusters.npz"
_LEVEL = "cluster"


def relabel(train: Records, clusters: Clusters) -> Records:
    """Returns the training images with their clusters as the train level."""
    names = tuple(f"cluster {number}" for number in range(len(clusters.centre)))
    levels = {_LEVEL: Level(clusters.label, names), **train.levels}
    return dataclasses.replace(train, levels=levels, train_level=_LEVEL)


def check_source(source: pathlib.Path, records: dict[str, Records], k: int) -> None:
    """Raises UserError unless the workdir `source` holds a finished run on the same data, with at least k images."""
    where = f"clusterfit.source = {source}"
    if not os.path.isfile(source / "config.json"):
        raise UserError(f"{where}: found no run (no config.json); expected the workdir of a finished baseline.")
    for file in ("metrics.json", "data.json"):
        if not os.path.isfile(source / file):
            raise UserError(f"{where}: found an unfinished run (no {file}); let experiments/train.py finish it first.")
    started = read_json(source / "data.json", dict, "expected that of the finished run in clusterfit.source")
    changed = sorted(split for split, r in records.items() if started.get(split) != r.fingerprint())
    if changed:
        raise UserError(
            f"{where}: found a run on other images or labels (split {', '.join(changed)}); expected the same data, "
            "with the same data.image_size and data.stream."
        )
    of_source = workdir_lib.read_config(source).data
    level = of_source.train_level or usual_level(of_source.source, records["train"].levels)
    if level != records["train"].train_level:
        raise UserError(
            f"{where}: found a run trained on level {level}; expected level {records['train'].train_level}; use a run "
            "with the same data.train_level."
        )
    if k > len(records["train"]):
        raise UserError(
            f"found clusterfit.num_clusters = {k}; expected at most {len(records['train'])}, the number of training "
            "images; use about one cluster for ten images."
        )


def is_saved(workdir: pathlib.Path) -> bool:
    """Returns whether the run in `workdir` has stored its clusters."""
    return (workdir / _FILE).is_file()


def save(workdir: pathlib.Path, clusters: Clusters) -> None:
    """Writes clusters.npz atomically, on the first process only."""
    if not parallel.is_first():
        return
    temporary = workdir / f"tmp_{_FILE}"
    np.savez(temporary, **clusters._asdict())
    os.replace(temporary, workdir / _FILE)


def load(workdir: pathlib.Path, num_images: int) -> Clusters:
    """Loads the clusters of the run in `workdir`, which has `num_images` training images.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = workdir / _FILE
    remedy = "remove the file to compute the clusters again from clusterfit.source"
    arrays = read_npz(path, Clusters._fields.__contains__, Clusters._fields, remedy)
    with reading(path, remedy):
        centre, label = arrays["centre"], arrays["label"]
        clusters = Clusters(centre, label, float(arrays["inertia"]), int(arrays["iterations"]))
        if centre.ndim != 2 or label.dtype != np.int32 or label.shape != (num_images,):
            raise ValueError(f"labels {label.dtype} {list(label.shape)} for {num_images} images")
        if not 0 <= label.min() <= label.max() < len(centre):
            raise ValueError(f"labels {label.min()} to {label.max()} for {len(centre)} clusters")
    return clusters


def fingerprint(clusters: Clusters) -> str:
    """Returns 16 hexadecimal digits of a SHA-256 over the clusters of the images."""
    digest = hashlib.sha256(str(clusters.centre.shape).encode())
    digest.update(np.ascontiguousarray(clusters.label, "<i4").tobytes())
    return digest.hexdigest()[:16]
