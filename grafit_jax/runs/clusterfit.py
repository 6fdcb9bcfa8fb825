"""ClusterFit (docs/paper.md section 2): train a new network on clusters of a coarse-trained network's features.

The clusters are made once, when a run starts, and kept beside it as clusters.npz, so that a run that goes on, or is
evaluated, needs neither the other run nor a second clustering.
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
    """The training images with their clusters as the level that is trained on."""
    names = tuple(f"cluster {number}" for number in range(len(clusters.centre)))
    levels = {_LEVEL: Level(clusters.label, names), **train.levels}
    return dataclasses.replace(train, levels=levels, train_level=_LEVEL)


def check_source(source: pathlib.Path, records: dict[str, Records], k: int) -> None:
    """Raises UserError unless the workdir `source` holds a finished run of the same data, with k images at least."""
    if not os.path.isfile(source / "config.json"):
        raise UserError(
            f"clusterfit.source = {source} holds no run (no config.json): want that of a finished baseline."
        )
    for file in ("metrics.json", "data.json"):
        if not os.path.isfile(source / file):
            raise UserError(
                f"clusterfit.source = {source} holds no finished run (no {file}): let experiments/train.py end first."
            )
    started = read_json(source / "data.json", dict, "want that of the finished run clusterfit.source")
    changed = sorted(split for split, r in records.items() if started.get(split) != r.fingerprint())
    if changed:
        raise UserError(
            f"clusterfit.source = {source} is the run of other images or labels (split {', '.join(changed)}): want one "
            "of the same data, read alike (data.image_size, data.stream)."
        )
    of_source = workdir_lib.read_config(source).data
    level = of_source.train_level or usual_level(of_source.source)
    if level != records["train"].train_level:
        raise UserError(
            f"clusterfit.source = {source} was trained on the level {level}, and the level here is "
            f"{records['train'].train_level}: want a run of the same data.train_level."
        )
    if k > len(records["train"]):
        raise UserError(
            f"clusterfit.num_clusters = {k} is more than the {len(records['train'])} training images: want at most one "
            "cluster for each, and better some ten images in each."
        )


def is_saved(workdir: pathlib.Path) -> bool:
    """Whether the run in `workdir` has its clusters."""
    return (workdir / _FILE).is_file()


def save(workdir: pathlib.Path, clusters: Clusters) -> None:
    """Writes clusters.npz, all of it or nothing; the first process does."""
    if not parallel.is_first():
        return
    temporary = workdir / f"tmp_{_FILE}"
    np.savez(temporary, **clusters._asdict())
    os.replace(temporary, workdir / _FILE)


def load(workdir: pathlib.Path, num_images: int) -> Clusters:
    """The clusters of the run in `workdir`, which has so many training images; UserError for a file that is broken."""
    path = workdir / _FILE
    want = "remove it, and it is made again from clusterfit.source"
    arrays = read_npz(path, Clusters._fields.__contains__, Clusters._fields, want)
    with reading(path, want):
        centre, label = arrays["centre"], arrays["label"]
        clusters = Clusters(centre, label, float(arrays["inertia"]), int(arrays["iterations"]))
        if centre.ndim != 2 or label.dtype != np.int32 or label.shape != (num_images,):
            raise ValueError(f"{label.dtype} {list(label.shape)} clusters of {num_images} images")
        if not 0 <= label.min() <= label.max() < len(centre):
            raise ValueError(f"clusters {label.min()} to {label.max()} of {len(centre)}")
    return clusters


def fingerprint(clusters: Clusters) -> str:
    """16 hexadecimal digits of a SHA-256 over the images' clusters."""
    digest = hashlib.sha256(str(clusters.centre.shape).encode())
    digest.update(np.ascontiguousarray(clusters.label, "<i4").tobytes())
    return digest.hexdigest()[:16]
