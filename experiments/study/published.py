"""The published rows (docs/paper.md section 4): their values, ours, and what is missing to run them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from grafit_jax.data.datasets.taxonomy import LEVELS
from grafit_jax.runs.results import Result
from grafit_jax.runs.tables import markdown

Recorded = Mapping[str, Sequence[Result]]

# The method that the MaskCon paper calls Grafit.
METHOD = "grafit_maskcon"
# The nine methods of docs/paper.md section 2.
OF_PAPER = (
    "baseline", "baseline_mlp", "snca", "snca_plus", "clusterfit", "clusterfit_plus", "byol", "grafit_fc", "grafit",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    """A published row, or a row of the paper without a confirmed cell.

    Attributes:
      table: the table of `tables.TABLES` whose runs measure it.
      rows: rows of that table; more than one for a method trained at several levels.
      trunk: name of the network.
      published: metric -> percent, or None if it is not confirmed.
      standing: standing of the published values: "reported", "paper", or "" if there are none.
      lacks: data and weights that must be obtained by hand before it can run.
      how: how the published value was obtained, if it needs a remark.
    """

    table: str
    rows: tuple[str, ...]
    trunk: str
    published: Mapping[str, float | None]
    standing: str = ""
    lacks: tuple[str, ...] = ()
    how: str = ""


# Data and weights that must be obtained by hand.
_CARS = "images of Cars"
_IMAGENET = "ImageNet"
_INAT18 = "categories.json of iNaturalist 2018"
_INAT19 = "iNaturalist 2019"
_SOP = "Online Products"

# Protocol "maskcon": data set in configs/maskcon.py -> (R@1, 2, 5, 10 of a pretrained trunk [reported], what it lacks).
_KS = (1, 2, 5, 10)
MASKCON = {
    "cifar100": ((60.57, 71.13, 82.32, 89.21), ()),
    "cars": ((42.3, 54.79, 71.1, 81.74), (_CARS,)),
    "imagenet32": ((18.13, 25.46, 37.19, 46.64), (_IMAGENET,)),
    "sop": ((74.02, 78.82, 84.13, 87.91), (_SOP,)),
}


def table_name(dataset: str, *, pretrained: bool) -> str:
    """Returns the table, in `tables.TABLES`, of a data set of protocol "maskcon"."""
    return f"maskcon_{dataset}{'_pretrained' if pretrained else ''}"


def _maskcon() -> Iterable[Target]:
    for dataset, (recall, lacks) in MASKCON.items():
        published = {f"recall@{k}": value for k, value in zip(_KS, recall, strict=True)}
        pretrained, scratch = (table_name(dataset, pretrained=p) for p in (True, False))
        yield Target(pretrained, (METHOD,), "resnet18", published, "reported", lacks)
        yield Target(scratch, (METHOD,), "resnet18", published, "reported", lacks, "pretrained")


# Transfer: data set in configs/transfer.py -> what it lacks.
TRANSFER = {
    "inat19": (_INAT19,),
    "cifar100": (),
    "food101": (),
    "inat18": (_INAT18,),
    "flowers": (),
    "cars": (_CARS,),
    "imagenet": (),
}
# Size of the larger test images in pixels [ours]; the published size is not known.
LARGE_SIZE = "384"
# (data set, method, trunk, `Target.how`) -> top-1.
_LARGE, _LATER, _UNSAID = "larger test images", "a later paper", "one of two readings"
_REPORTED = {
    ("inat19", "grafit", "regnet_y_8gf", _LARGE): 84.1,
    ("cifar100", "grafit", "resnet50", _UNSAID): 83.7,
    ("food101", "grafit", "regnet_y_8gf", _LARGE): 93.7,
}
_PUBLISHED = {
    ("inat18", "grafit", "regnet_y_8gf", _LARGE): 81.2,
    ("inat18", "grafit", "resnet50", ""): 69.8,
    ("flowers", "grafit", "regnet_y_8gf", _LARGE): 99.1,
    ("cars", "grafit", "regnet_y_8gf", _LARGE): 94.7,
    ("flowers", "grafit", "resnet50", ""): 98.2,
    ("cars", "grafit", "resnet50", ""): 92.5,
    ("inat19", "grafit", "resnet50", ""): 75.9,
    ("imagenet", "grafit", "resnet50", ""): 79.6,
    ("flowers", "grafit", "regnet_y_8gf", ""): 99.0,
    ("cars", "grafit", "regnet_y_8gf", ""): 94.0,
    ("inat18", "grafit", "regnet_y_8gf", ""): 76.8,
    ("inat19", "grafit", "regnet_y_8gf", ""): 80.0,
    ("flowers", "baseline", "resnet50", _LATER): 96.2,
    ("cars", "baseline", "resnet50", _LATER): 90.0,
    ("inat18", "baseline", "resnet50", _LATER): 68.4,
    ("inat19", "baseline", "resnet50", _LATER): 73.7,
    ("flowers", "grafit", "resnet50", _LATER): 97.6,
    ("cars", "grafit", "resnet50", _LATER): 92.7,
    ("inat18", "grafit", "resnet50", _LATER): 68.5,
    ("inat19", "grafit", "resnet50", _LATER): 74.6,
}
# Data sets with rows of larger test images.
LARGE = {dataset for dataset, _, _, how in (*_REPORTED, *_PUBLISHED) if how == _LARGE}


def transfer_row(dataset: str, method: str, trunk: str, size: str = "") -> str:
    """Returns the name, in `tables.TABLES`, of a fine-tuning row; `size` is the test size if not the training size."""
    return "_".join(filter(None, (dataset, method, trunk, size)))


def _transfer() -> Iterable[Target]:
    for key, top1 in {**_REPORTED, **_PUBLISHED}.items():
        dataset, method, trunk, how = key
        row = transfer_row(dataset, method, trunk, LARGE_SIZE if how == _LARGE else "")
        standing = "reported" if key in _REPORTED else "paper"
        lacks = (_IMAGENET, *TRANSFER[dataset])
        yield Target(f"transfer_{dataset}", (row,), trunk, {"top1": top1}, standing, lacks, how)


def _coarse_to_fine() -> Iterable[Target]:
    for table, trunk, levels, lacks in (
        ("study_cifar100", "resnet8", (), ()),
        ("cifar100_gpu", "resnet18", (), ()),
        ("cifar100_paper", "resnet50", (), ()),
        ("imagenet", "resnet50", ("coarse", "fine"), (_IMAGENET,)),
        ("inaturalist2018", "resnet50", LEVELS, (_INAT18,)),
        ("inaturalist2019", "resnet50", LEVELS, (_INAT19,)),
    ):
        for method in OF_PAPER:
            rows = tuple(f"{method}_{level}" for level in levels) or (method,)
            yield Target(table, rows, trunk, {"knn_top1": None, "map": None}, lacks=lacks)


# The other reading of the CIFAR-100 value [reported], next to fine-tuning: k-NN top-1 after training on fine labels.
_FINE = {"knn_top1": _REPORTED["cifar100", "grafit", "resnet50", _UNSAID]}
# k-means clusters of the test images, as FALCON's paper reports them for other methods.
_CLUSTERS = {"snca": (42.9, 18.9), "ancor": (23.4, 26.6)}


def _clusters() -> Iterable[Target]:
    for method, (accuracy, ari) in _CLUSTERS.items():
        values = {"cluster_accuracy": accuracy, "cluster_ari": ari}
        how = "a later paper, self-supervised start"
        yield Target("cifar100_gpu", (method,), "resnet18", values, "paper", how=how)


TARGETS: tuple[Target, ...] = (
    *_transfer(),
    Target("cifar100_fine", ("grafit_fine",), "resnet50", _FINE, "reported", how=_UNSAID),
    *_maskcon(),
    *_clusters(),
    *_coarse_to_fine(),
)
_NAMES = {
    "knn_top1": "k-NN",
    "map": "mAP",
    "top1": "top-1",
    "recall@1": "R@1",
    "recall@2": "2",
    "recall@5": "5",
    "recall@10": "10",
    "cluster_accuracy": "cluster accuracy",
    "cluster_ari": "ARI",
}


def ours(target: Target, recorded: Recorded) -> list[dict[str, float]]:
    """Returns the metrics of each measured row of a target: means over the recorded seeds, in percent."""
    found = []
    for row in target.rows:
        runs = [r["metrics"] for r in recorded.get(target.table, ()) if r["row"] == row]
        if runs and all(metric in run for metric in target.published for run in runs):
            found.append({metric: 100 * float(np.mean([run[metric] for run in runs])) for metric in target.published})
    return found


def state(target: Target, recorded: Recorded) -> str:
    """Returns whether a target is measured, ready to run, or blocked, and by what."""
    measured = len(ours(target, recorded))
    if measured == len(target.rows):
        return "measured"
    if target.lacks:
        return f"blocked: needs {', '.join(target.lacks)}"
    return "ready, not run" if not measured else f"ready, {measured} of {len(target.rows)} rows measured"


_HEADER = ("table", "row", "trunk", "metric", "paper", "ours", "state")


def render(recorded: Recorded, tables: Iterable[str] = (), as_text: Callable[..., str] = markdown) -> str:
    """Renders published values beside ours, each of ours with its difference in points; "" if nothing is published.

    Args:
      recorded: results by table.
      tables: tables to show; empty for all.
      as_text: renders a header and rows.
    """
    chosen = {*tables} or {target.table for target in TARGETS}
    rows = [_cells(target, recorded) for target in TARGETS if target.table in chosen]
    if as_text is markdown:  # a phone breaks lines at spaces and within code
        rows = [[f"`{table}`", f"`{row}`", *(cell.replace("/", " / ") for cell in more)] for table, row, *more in rows]
    return as_text(_HEADER, rows) if rows else ""


def _cells(target: Target, recorded: Recorded) -> list[str]:
    values = ours(target, recorded)
    several = len(target.rows) > 1
    mine = f"{len(values)} of {len(target.rows)}" if several and values else "–"
    if values and not several:
        mine = "/".join(_beside(values[0][metric], paper) for metric, paper in target.published.items())
    paper = "/".join(f"{value:g}" for value in target.published.values() if value is not None)
    return [
        target.table,
        f"{target.rows[0].rpartition('_')[0]} x {len(target.rows)} levels" if several else target.rows[0],
        target.trunk,
        "/".join(_NAMES[metric] for metric in target.published),
        f"{paper} [{', '.join(filter(None, (target.standing, target.how)))}]" if paper else "–",
        mine,
        state(target, recorded),
    ]


def _beside(value: float, paper: float | None) -> str:
    return f"{value:.2f}" if paper is None else f"{value:.2f} ({value - paper:+.2f})"
