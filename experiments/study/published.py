"""Every published row (PAPER.md section 4, and the paper's coarse -> fine tables): its value, ours, what it lacks."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from grafit_jax import methods
from grafit_jax.data.datasets.taxonomy import LEVELS
from grafit_jax.report.tables import markdown, plain_table
from grafit_jax.runs.results import Result

Recorded = Mapping[str, Sequence[Result]]

# Under Grafit's name the MaskCon paper means this method.
METHOD = "grafit_maskcon"
# The nine methods of PAPER.md section 2.
OF_PAPER = (
    "baseline", "baseline_mlp", "snca", "snca_plus", "clusterfit", "clusterfit_plus", "byol", "grafit_fc", "grafit",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    """A published row, or one that the paper has and of which no cell is confirmed.

    Attributes:
      table: of `tables.TABLES`, whose runs measure it.
      rows: of that table; more than one where a method is trained at several levels.
      title: the data set, and how it is seen.
      trunk: the network, and what it starts from.
      published: metric -> percent, or None where it is not confirmed.
      standing: of the published values: "seed", "paper", or "" without any.
      time: of all its runs, and on what device.
      data: what its data sets are.
      lacks: what has to be got by hand before it can be run; empty if nothing.
      protocol: "paper" or "maskcon".
      how: it was published, if not as one expects.
    """

    table: str
    rows: tuple[str, ...]
    title: str
    trunk: str
    published: Mapping[str, float | None]
    standing: str
    time: str
    data: str
    lacks: tuple[str, ...] = ()
    protocol: str = "paper"
    how: str = ""


# Protocol "maskcon", by what configs/maskcon.py calls the data set: title, what a trunk that starts pretrained is to
# reach at R@1, 2, 5 and 10 [seed], the time on one GPU by arithmetic (configs/maskcon.py), data, what is to be got.
_KS = (1, 2, 5, 10)
_CARS = "the images of Cars (their public download is gone)"
_IMAGENET = "ImageNet (from image-net.org)"
MASKCON = {
    "cifar100": ("CIFAR-100 (20 → 100)", (60.57, 71.13, 82.32, 89.21), "10 minutes", "cifar100", ()),
    "cars": ("Stanford Cars (8 → 196)", (42.3, 54.79, 71.1, 81.74), "25 minutes", "cars196", (_CARS,)),
    "imagenet32": (
        "ImageNet32 (12 → 1000)", (18.13, 25.46, 37.19, 46.64), "2 hours", "imagenet_resized/32x32", (_IMAGENET,),
    ),
    "sop": (
        "Stanford Online Products", (74.02, 78.82, 84.13, 87.91), "80 minutes", "stanford_online_products",
        ("the images (3 GB from Stanford)",),
    ),
}  # fmt: skip
_WEIGHTS = "torchvision's resnet18 weights"


def table_name(dataset: str, *, pretrained: bool) -> str:
    """What `tables.TABLES` calls the runs of a row of protocol "maskcon"."""
    return f"maskcon_{dataset}{'_pretrained' if pretrained else ''}"


def _maskcon() -> Iterable[Target]:
    for dataset, (title, recall, time, data, lacks) in MASKCON.items():
        published = {f"recall@{k}": value for k, value in zip(_KS, recall, strict=True)}
        for pretrained in (True, False):
            yield Target(
                table_name(dataset, pretrained=pretrained), (METHOD,), title,
                f"ResNet-18 {'pretrained' if pretrained else 'from scratch'}", published, "seed",
                f"{time} on one GPU", data, (*lacks, *((_WEIGHTS,) if pretrained else ())), "maskcon",
                "" if pretrained else "with a pretrained trunk",
            )  # fmt: skip


# FLOP of an image, forward.
_FLOP = {
    "resnet18, 32 px": 1.1e9, "resnet50, 32 px": 2.6e9, "resnet50": 8.2e9, "regnet_y_8gf": 16e9,
}  # fmt: skip
# FLOP a second: a third of the peak in bfloat16.
_H100 = 3.3e14
_IMAGENET_IMAGES = 1_281_167


def hours(trunk: str, method: str, *, images: int, epochs: int, views: int) -> float:
    """Of a training on one H100, by arithmetic."""
    return images * epochs * methods.get(method).passes(views) * _FLOP[trunk] / _H100 / 3600


def _on_h100(amount: float) -> str:
    minutes = max(1, round(60 * amount))
    time = f"{amount:.0f} hours" if amount >= 1.5 else "1 minute" if minutes == 1 else f"{minutes} minutes"
    return f"{time} on one H100"


# Transfer, by what configs/transfer.py calls the data set: title, training images, epochs, data and what is to be got.
TRANSFER = {
    "inat19": ("iNaturalist 2019", 265_240, 100, "inaturalist2019", ("iNaturalist 2019 (the competition's folder)",)),
    "cifar100": ("CIFAR-100", 50_000, 100, "cifar100", ()),
    "food101": ("Food-101", 75_750, 100, "food101", ()),
    "inat18": ("iNaturalist 2018", 437_513, 100, "i_naturalist2018", ("categories.json of iNaturalist 2018",)),
    "flowers": ("Flowers-102", 2_040, 300, "oxford_flowers102", ()),
    "cars": ("Stanford Cars", 8_144, 300, "cars196", (_CARS,)),
    "imagenet": ("ImageNet, with a linear classifier", _IMAGENET_IMAGES, 30, "imagenet2012", ()),
}
# Pixels of the larger test images [ours]: how large the published ones are is not known.
LARGE_SIZE = "384"
# (data set, method, trunk, how it is published) -> top-1.
_LARGE, _LATER = f"at larger test images (ours: {LARGE_SIZE} px)", "in a later paper"
_UNSAID = "(one of two readings)"
_SEED = {
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


# Data sets with rows at larger test images.
LARGE = {dataset for dataset, _, _, how in (*_SEED, *_PUBLISHED) if how == _LARGE}


def transfer_row(dataset: str, method: str, trunk: str, size: str = "") -> str:
    """What `tables.TABLES` calls a row of fine-tuning, tested at `size` if that is not the usual one."""
    return "_".join(filter(None, (dataset, method, trunk, size)))


def _transfer() -> Iterable[Target]:
    for (dataset, method, trunk, how), top1 in {**_SEED, **_PUBLISHED}.items():
        title, images, epochs, data, lacks = TRANSFER[dataset]
        start = hours(trunk, method, images=_IMAGENET_IMAGES, epochs=600, views=4)
        tuning = hours(trunk, "baseline", images=images, epochs=epochs, views=1)
        row = transfer_row(dataset, method, trunk, LARGE_SIZE if how == _LARGE else "")
        yield Target(
            f"transfer_{dataset}", (row,), f"transfer to {title}", f"{trunk} of {method} on ImageNet",
            {"top1": top1}, "seed" if (dataset, method, trunk, how) in _SEED else "paper",
            _on_h100(start + tuning), ", ".join(dict.fromkeys(("imagenet2012", data))), (_IMAGENET, *lacks), how=how,
        )  # fmt: skip


def _coarse_to_fine() -> Iterable[Target]:
    for table, title, trunk, images, epochs, views, levels, data, lacks in (
        ("study_cifar100", "CIFAR-100 (4 → 20)", "resnet8", 0, 0, 0, (), "cifar100", ()),
        ("cifar100_gpu", "CIFAR-100 (20 → 100)", "resnet18, 32 px", 50_000, 50, 2, (), "cifar100", ()),
        ("cifar100_paper", "CIFAR-100 (20 → 100)", "resnet50, 32 px", 50_000, 600, 8, (), "cifar100", ()),
        (
            "imagenet", "ImageNet (127 → 1000), trained at 2 levels", "resnet50", _IMAGENET_IMAGES, 600, 4,
            ("coarse", "fine"), "imagenet2012", (_IMAGENET,),
        ),
        (
            "inaturalist2018", "iNaturalist 2018, trained at 7 levels", "resnet50", 437_513, 600, 4,
            LEVELS, "i_naturalist2018", ("categories.json of iNaturalist 2018",),
        ),
        (
            "inaturalist2019", "iNaturalist 2019, trained at 7 levels", "resnet50", 265_240, 600, 4,
            LEVELS, "inaturalist2019", ("iNaturalist 2019 (the competition's folder)",),
        ),
    ):  # fmt: skip
        for method in OF_PAPER:
            rows = tuple(f"{method}_{level}" for level in levels) or (method,)
            amount = images and len(rows) * hours(trunk, method, images=images, epochs=epochs, views=views)
            yield Target(
                table, rows, title, trunk, {"knn_top1": None, "map": None}, "",
                _on_h100(amount) if amount else "minutes on 2 cores", data, lacks,
            )  # fmt: skip


def _fine_labels() -> Target:
    """The other reading of the seed's CIFAR-100, besides fine-tuning: k-NN top-1 after training on fine labels."""
    return Target(
        "cifar100_fine", ("grafit_fine",), "CIFAR-100, trained on the 100 fine labels", "resnet50, 32 px, from scratch",
        {"knn_top1": _SEED["cifar100", "grafit", "resnet50", _UNSAID]}, "seed",
        _on_h100(hours("resnet50, 32 px", "grafit", images=50_000, epochs=600, views=8)), "cifar100", how=_UNSAID,
    )  # fmt: skip


TARGETS: tuple[Target, ...] = (*_transfer(), _fine_labels(), *_maskcon(), *_coarse_to_fine())
_NAMES = {"knn_top1": "k-NN", "map": "mAP", "top1": "top-1", **{f"recall@{k}": f"R@{k}" for k in _KS}}


def ours(target: Target, recorded: Recorded) -> list[dict[str, float]]:
    """For each row of a target that is measured, its metrics in percent, means over the recorded seeds."""
    found = []
    for row in target.rows:
        runs = [r["metrics"] for r in recorded.get(target.table, ()) if r["row"] == row]
        if runs and all(metric in run for metric in target.published for run in runs):
            found.append({metric: 100 * float(np.mean([run[metric] for run in runs])) for metric in target.published})
    return found


def state(target: Target, recorded: Recorded) -> str:
    """Measured, ready, or blocked and by what."""
    measured = len(ours(target, recorded))
    if measured == len(target.rows):
        return "measured"
    if target.lacks:
        return f"blocked: needs {', and '.join(target.lacks)}"
    return "ready, not run" if not measured else f"ready, {measured} of {len(target.rows)} rows measured"


def _cells(target: Target, recorded: Recorded) -> list[str]:
    """Row, trunk, paper's value, ours, what it takes, and the state."""
    values = ours(target, recorded)
    single = len(target.rows) == 1
    mine = (_percents(values[0].values()) if single else f"{len(values)} of {len(target.rows)}") if values else "–"
    published = f"{_percents(target.published.values())} [{target.standing}] {target.how}".strip()
    return [
        target.rows[0] if single else f"{target.rows[0].rpartition('_')[0]} x {len(target.rows)} levels",
        target.trunk,
        published if target.standing else "–",
        mine,
        target.time,
        state(target, recorded),
    ]


def time(table: str, row: str) -> str:
    """What a published row takes; "" for others."""
    for target in TARGETS:
        if target.table == table and row in target.rows:
            return target.time + (f", {len(target.rows)} levels together" if len(target.rows) > 1 else "")
    return ""


_HEADER = ("row", "trunk", "paper", "ours", "takes", "state")


def _metrics(target: Target) -> str:
    return " / ".join(_NAMES[metric] for metric in target.published)


def _percents(values: Iterable[float | None]) -> str:
    return " / ".join("–" if value is None else f"{value:.4g}" for value in values)


def command(table: str) -> str:
    """The command line that trains a table; resnet18.safetensors stands for the file of pretrained weights."""
    weights = " --pretrained=resnet18.safetensors" if table.endswith("_pretrained") else ""
    return f"python experiments/reproduce.py --table={table}{weights}"


def plain(recorded: Recorded) -> str:
    """Every target, for a terminal of 120 columns: under a line for each table, and what trains it, its rows."""
    groups: dict[str, list[list[str]]] = {}
    for target in sorted(TARGETS, key=lambda target: [t.table for t in TARGETS].index(target.table)):
        heading = (
            f"{target.table}: {target.title}; {_metrics(target)}; protocol {target.protocol}; data {target.data}\n"
            f"$ {command(target.table)}"
        )
        groups.setdefault(heading, []).append(_cells(target, recorded))
    parts = [f"{heading}\n{plain_table(_HEADER, rows, width=118)}" for heading, rows in groups.items()]
    return "\n\n".join(part.replace("\n", "\n  ") for part in parts)


def page(recorded: Recorded) -> str:
    """Every target, in Markdown."""
    rows = []
    for target in TARGETS:
        row, trunk, published, mine, time, said = _cells(target, recorded)
        what = [f"`{target.table}`", row, target.title, target.protocol, trunk, _metrics(target)]
        rows.append([*what, published, mine, f"{target.data}; {time}", said])
    header = ("table", "row", "what", "protocol", "trunk", "metric", "paper", "ours", "takes", "state")
    return markdown(header, rows)


def compare(table: str, found: Sequence[Result]) -> str:
    """Published values beside those of a table's results, with the differences in points; "" for no published table."""
    rows = []
    of_table = [target for target in TARGETS if target.table == table]
    if not of_table:
        return ""
    for target in of_table:
        for values in ours(target, {table: found}) if len(target.rows) == 1 else ():
            for metric, published in target.published.items():
                if published is not None:
                    paper = f"{published:g} [{target.standing}] {target.how}".strip()
                    difference = f"{values[metric] - published:+.2f}"
                    rows.append([target.rows[0], _NAMES[metric], paper, f"{values[metric]:.2f}", difference])
    if not rows:
        return "\nOf these rows no published cell is confirmed: there is nothing to compare with.\n"
    return "\n" + plain_table(("row", "metric", "paper", "ours", "difference"), rows) + "\n"


def render(recorded: Recorded) -> str:
    """Protocol "maskcon": in each cell ours / what is to be reached, then the row's state."""
    found = []
    for target in _maskcon():
        values = ours(target, recorded)
        title, start = target.title, target.trunk.removeprefix("ResNet-18 ")
        cells = [
            f"{f'{values[0][metric]:.2f}' if values else '–'} / {published:g}"
            for metric, published in target.published.items()
        ]
        said = state(target, recorded)
        if said.startswith("ready"):
            said = f"ready, not run: {target.time}"
        found.append([title, start, *cells, said])
    return markdown(["data set", "trunk starts", *(f"R@{k}" for k in _KS), "state"], found)
