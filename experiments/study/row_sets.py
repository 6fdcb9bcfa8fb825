"""The rows of the tables that are more than a config file's methods."""

import dataclasses
from typing import Any

from grafit_jax.data.datasets.grocery import LEVELS, LIST
from study import published
from study.rows import Row, by_method

# Methods that the MaskCon paper compares, those run in its setting, and methods of later papers on the same step.
OF_MASKCON = ("selfcon", "supcon", "supce", "grafit_maskcon", "coins", "maskcon")
MASKCON = (*OF_MASKCON, "snca_plus", "grafit")
LATER = ("spread", "ancor")
# Seeds of the study: three for the rows that most claims compare.
OF_PAPER = dict.fromkeys(published.OF_PAPER, 2) | {"baseline": 3, "baseline_mlp": 3, "grafit": 3}
CIFAR100 = by_method("configs/cifar100.py", "preset=cpu_short,", OF_PAPER | dict.fromkeys(LATER, 2))
OMNIGLOT = by_method("configs/omniglot.py", "", OF_PAPER | dict.fromkeys((*OF_MASKCON, *LATER), 2))


def transfer() -> tuple[Row, ...]:
    """Trunks trained on coarse labels of half of CIFAR-100's classes, fine-tuned on fine labels of the other half."""
    trunks = by_method("configs/cifar100.py", "preset=cpu_half,", ("baseline", "grafit"))
    tuned = [
        Row(f"from_{trunk.name}", "configs/transfer.py", "dataset=cifar100,preset=cpu", start=trunk) for trunk in trunks
    ]
    return (dataclasses.replace(tuned[0], name="from_scratch", start=None), *tuned)


def _changed(row: Row, name: str, *, seeds: int = 1, **overrides: Any) -> Row:
    """Returns the row under another name with config keys changed; `a__b` stands for a.b."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return dataclasses.replace(row, name=name, seeds=seeds, overrides=dotted)


def maskcon_cpu() -> tuple[Row, ...]:
    """The MaskCon paper's methods and the controls, minutes each on CPU."""
    seeds = dict.fromkeys((*MASKCON, "baseline_mlp"), 1)
    seeds |= dict.fromkeys(("supce", "grafit_maskcon", "maskcon", "grafit", "baseline_mlp"), 2)
    return by_method("configs/maskcon.py", "dataset=cifar100,preset=cpu,", seeds)


def maskcon_gpu(dataset: str) -> tuple[Row, ...]:
    """The published setting from scratch; for CIFAR-100 also half the epochs, with w and t of a fork of MaskCon's code.

    The fork uses w = 1, t = 0.05 for `maskcon` on CIFAR-100, and w = 0.8 for Grafit on a part of it.
    """
    rows = by_method("configs/maskcon.py", f"dataset={dataset},", MASKCON)
    if dataset != "cifar100":
        return rows
    by_name = {row.name: row for row in rows}
    short = (
        _changed(
            by_name["maskcon"],
            "maskcon_100",
            train__epochs=100,
            loss__maskcon_weight=1.0,
            loss__maskcon_temperature=0.05,
        ),
        _changed(by_name["grafit_maskcon"], "grafit_maskcon_100", train__epochs=100, loss__maskcon_weight=0.8),
    )
    older = _changed(
        by_name["grafit_maskcon"],
        "grafit_maskcon_torchvision",
        views__autoaugment=True,
        model__head_init="lecun",
    )
    return (*rows, *short, older)


def cifar100_gpu() -> tuple[Row, ...]:
    """All methods, minutes each on a GPU, and Grafit with one setting changed at a time.

    `grafit_plus` trains like `grafit_lambda_4`, an older row, and is evaluated at the joined layers too.
    """
    rows = by_method("configs/cifar100.py", "preset=r18_short,", (*published.OF_PAPER, *LATER, "grafit_plus"))
    grafit = next(row for row in rows if row.name == "grafit")
    return (
        *rows,
        _changed(grafit, "grafit_lambda_4", loss__instance_weight=4.0),
        _changed(grafit, "grafit_projector_norm", model__projector_norm=True),
        _changed(grafit, "grafit_fine", data__train_level="fine"),
        _changed(grafit, "grafit_200", train__epochs=200),
    )


def ablations() -> tuple[Row, ...]:
    """Grafit with one setting changed at a time; the first row is unchanged, the last has no labels.

    If all images share one coarse class, the k-NN loss and its gradient are 0 and `byol` remains.
    """
    grafit, byol = (next(row for row in CIFAR100 if row.name == name) for name in ("grafit", "byol"))

    def change(name: str, **overrides: Any) -> Row:
        return _changed(grafit, f"grafit_{name}", **overrides)

    return (
        grafit,
        change("views_4", views__num_views=4),
        change("lambda_0.3", loss__instance_weight=0.3),
        change("lambda_3", loss__instance_weight=3.0),
        change("sigma_0.02", loss__temperature=0.02),
        change("sigma_0.1", loss__temperature=0.1),
        change("memory_0", memory__momentum=0.0),
        change("memory_0.9", memory__momentum=0.9),
        change("ema_off", ema__base=0.0, ema__final=0.0),
        change("projector_off", method="grafit_no_projector", model__embed_dim=64),
        byol,
    )


def grocery() -> tuple[Row, ...]:
    """Photos from the laptop trunk: three seeds of 8 epochs, and one of 40 for the two methods that claims compare."""
    methods = ("baseline", "baseline_mlp", "snca_plus", "grafit_fc", "grafit", "maskcon")
    rows = by_method("configs/grocery.py", "", {"frozen": 1, **dict.fromkeys(methods, 3)})
    long = by_method("configs/grocery.py", "preset=lite0_long,", ("baseline", "grafit"))
    return (*rows, *(dataclasses.replace(row, name=f"{row.name}_40") for row in long))


def recipe() -> tuple[Row, ...]:
    """What may make Grafit stronger [ours], on training images that are held out."""
    held_out = {"data__holdout": 0.2, "eval__layers": ("trunk", "projector", "concat")}

    def row(name: str, method: str = "grafit", **changes: Any) -> Row:
        start = Row(name, "configs/cifar100.py", f"preset=cpu_short,method={method}")
        return _changed(start, name, seeds=2, **held_out, **changes)

    return (
        row("baseline", "baseline"),
        row("grafit"),
        row("grafit_lambda_4", loss__instance_weight=4.0),
        row("grafit_lambda_4_norm", loss__instance_weight=4.0, model__projector_norm=True),
        row("grafit_own_class", "grafit_own_class"),
        row("grafit_cosine", "grafit_cosine"),
        row("grafit_cosine_lambda_4", "grafit_cosine", loss__instance_weight=4.0),
    )


def plus(config: str, arg: str = "") -> tuple[Row, ...]:
    """The winner of `recipe` and coarse cross-entropy, with seeds that no choice was made on."""
    rows = by_method(config, arg, {"baseline": 3, "grafit_plus": 3})
    return tuple(dataclasses.replace(row, first=3) for row in rows)


def sums_of_levels(config: str, *sums: tuple[str, ...], seeds: int, **overrides: Any) -> tuple[Row, ...]:
    """The k-NN loss alone at a level, or summed over several, from coarse to fine."""
    row = Row("", config, "method=snca_plus")
    return tuple(
        _changed(
            row,
            f"snca_plus_{'_'.join(levels)}",
            seeds=seeds,
            data__train_level=levels[-1],
            loss__levels=levels if len(levels) > 1 else (),
            **overrides,
        )
        for levels in sums
    )


def grocery_levels() -> tuple[Row, ...]:
    """Photos by the list that prepare.py writes, with a third level above the classes: Fruit, Packages, Vegetables."""
    group, class_, variety = LEVELS
    sums = ((group,), (class_,), (variety,), (group, class_), (class_, variety), (group, class_, variety))
    listed = {"data__source": f"csv:{LIST}", "data__variant": "", "data__test_split": "test"}
    return sums_of_levels("configs/grocery.py", *sums, seeds=1, **listed)


def grocery_rates() -> tuple[Row, ...]:
    """One method of each supervised loss at the learning rates to choose from, on the validation photos."""
    rows = by_method("configs/grocery.py", "split=validation,", ("baseline", "snca_plus", "maskcon"))
    return tuple(
        _changed(row, f"{row.name}_{rate}", optimizer__learning_rate=rate) for row in rows for rate in (0.04, 0.12, 0.4)
    )


def transfer_to(dataset: str) -> tuple[Row, ...]:
    """Trunks trained on the fine labels of ImageNet [ours], fine-tuned on a data set (docs/paper.md section 4)."""

    def row(method: str, trunk: str, size: str = "") -> Row:
        name, changes = (
            (f"{method}_fine", {}) if trunk == "resnet50" else (f"{method}_fine_{trunk}", {"model.trunk": trunk})
        )
        start = Row(name, "configs/imagenet.py", f"level=fine,method={method}", overrides=changes)
        arg = f"dataset={dataset},trunk={trunk}{size and f',size={size}'}"
        return Row(published.transfer_row(dataset, method, trunk, size), "configs/transfer.py", arg, start=start)

    small = (row("baseline", "resnet50"), row("grafit", "resnet50"))
    if dataset in published.LARGE:
        return (*small, row("grafit", "regnet_y_8gf"), row("grafit", "regnet_y_8gf", published.LARGE_SIZE))
    return small
