"""The tables of `experiments/reproduce.py`: their rows, and how they are shown."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from grafit_jax import pretrained
from grafit_jax.errors import UserError, choose
from study import published, recording
from study.recording import RAW_PIXELS
from study.rows import Row, Table, by_method

# Suffix of rows that used an older recipe.
AS_IT_WAS = "_torchvision"

_COLUMNS = {"map": "**mAP**", "recall@1": "R@1", "knn_top1": "k-NN", "coarse/knn_top1": "coarse k-NN"}
_STUDY = _COLUMNS | {"coarse/map": "coarse mAP"}
_BY_LEVEL = {"knn_top1": "k-NN", "map": "mAP"}
_RECALL = {f"recall@{k}": f"R@{k}" for k in (1, 2, 5, 10)} | {"map": "mAP"}
# What distinguishes rows of one method: the protocol, and the initial weights of the trunk.
_FACTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "protocol": lambda config: recording.protocol(config["method"]),
    "trunk": lambda config: "pretrained" if config["model.pretrained"] else "from scratch",
}
_AUTOAUGMENT = {True: "of torchvision (black)", "maskcon": "of MaskCon (grey)", False: "off"}
_OF_CIFAR100: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    **_FACTS,
    "AutoAugment": lambda config: _AUTOAUGMENT[config["views.autoaugment"]],
}


def _number(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda config: f"= {config[key]:g}"


def _trained_on(config: Mapping[str, Any]) -> str:
    return f"{config['data.train_level'] or 'coarse'} labels"


_OF_MIXTURES = {
    "w": _number("loss.maskcon_weight"),
    "t": _number("loss.maskcon_temperature"),
    "epochs": _number("train.epochs"),
}
_OF_MASKCON = ("selfcon", "supcon", "supce", "grafit_maskcon", "coins", "maskcon")
_MASKCON = (*_OF_MASKCON, "snca_plus", "grafit")
# Methods of other papers on the same step.
_LATER = ("spread", "ancor")
# Seeds of the study: three for the rows that most claims compare.
_OF_PAPER = dict.fromkeys(published.OF_PAPER, 2) | {"baseline": 3, "baseline_mlp": 3, "grafit": 3}


def row_of(path: str) -> str:
    """Returns the row of a run's directory, without the seed."""
    return re.sub(r"_seed\d+$", "", pathlib.Path(path).name)


def _transfer() -> tuple[Row, ...]:
    """Trunks trained on coarse labels of half of CIFAR-100's classes, fine-tuned on fine labels of the other half."""
    trunks = by_method("configs/cifar100.py", "preset=cpu_half,", ("baseline", "grafit"))
    tuned = [
        Row(f"from_{trunk.name}", "configs/transfer.py", "dataset=cifar100,preset=cpu", start=trunk) for trunk in trunks
    ]
    return (dataclasses.replace(tuned[0], name="from_scratch", start=None), *tuned)


_LITE0 = pretrained.KNOWN["tf_efficientnet_lite0"]
_CIFAR100 = by_method("configs/cifar100.py", "preset=cpu_short,", _OF_PAPER | dict.fromkeys(_LATER, 2))
# Config key -> symbol in the paper.
_LETTERS = {
    "views.num_views": "T",
    "loss.instance_weight": "λ",
    "loss.temperature": "σ",
    "memory.momentum": "memory momentum",
    "ema.base": "EMA rate",
}


def _changed(row: Row, name: str, *, seeds: int = 1, **overrides: Any) -> Row:
    """Returns the row under another name with config keys changed; `a__b` stands for a.b."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return dataclasses.replace(row, name=name, seeds=seeds, overrides=dotted)


def _maskcon_cpu() -> tuple[Row, ...]:
    """The current recipe, and the older one: torchvision's AutoAugment, heads with Flax's initialisation."""
    seeds = dict.fromkeys((*_MASKCON, "baseline_mlp"), 1)
    seeds |= dict.fromkeys(("supce", "grafit_maskcon", "maskcon", "grafit", "baseline_mlp"), 2)
    rows = by_method("configs/maskcon.py", "dataset=cifar100,preset=cpu,", seeds)
    return (*rows, *_as_it_was(rows, seeds=2))


def _as_it_was(rows: tuple[Row, ...], *, seeds: int) -> tuple[Row, ...]:
    return tuple(
        _changed(row, f"{row.name}{AS_IT_WAS}", seeds=seeds, views__autoaugment=True, model__head_init="lecun")
        for row in rows
    )


def _maskcon_gpu(dataset: str) -> tuple[Row, ...]:
    """The published setting from scratch; for CIFAR-100 also half the epochs, with w and t of a fork of MaskCon's code.

    The fork uses w = 1, t = 0.05 for `maskcon` on CIFAR-100, and w = 0.8 for Grafit on a part of it.
    """
    rows = by_method("configs/maskcon.py", f"dataset={dataset},", _MASKCON)
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
    return (*rows, *short, *_as_it_was((by_name["grafit_maskcon"],), seeds=1))


def _gpu() -> tuple[Row, ...]:
    """All methods, minutes each on a GPU, and Grafit with one setting changed at a time."""
    rows = by_method("configs/cifar100.py", "preset=r18_short,", (*published.OF_PAPER, *_LATER))
    grafit = next(row for row in rows if row.name == "grafit")
    return (
        *rows,
        _changed(grafit, "grafit_lambda_4", loss__instance_weight=4.0),
        _changed(grafit, "grafit_projector_norm", model__projector_norm=True),
        _changed(grafit, "grafit_fine", data__train_level="fine"),
        _changed(grafit, "grafit_200", train__epochs=200),
    )


def _ablations() -> tuple[Row, ...]:
    """Grafit with one setting changed at a time; the first row is unchanged, the last has no labels.

    If all images share one coarse class, the k-NN loss and its gradient are 0 and `byol` remains.
    """
    grafit, byol = (next(row for row in _CIFAR100 if row.name == name) for name in ("grafit", "byol"))

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


def _grocery() -> tuple[Row, ...]:
    """Photos from the laptop trunk: three seeds of 8 epochs, and one of 40 for the two methods that claims compare."""
    methods = ("baseline", "baseline_mlp", "snca_plus", "grafit_fc", "grafit", "maskcon")
    rows = by_method("configs/grocery.py", "", {"frozen": 1, **dict.fromkeys(methods, 3)})
    long = by_method("configs/grocery.py", "preset=lite0_long,", ("baseline", "grafit"))
    return (*rows, *(dataclasses.replace(row, name=f"{row.name}_40") for row in long))


def _grocery_rates() -> tuple[Row, ...]:
    """One method of each supervised loss at the learning rates to choose from, on the validation photos."""
    rows = by_method("configs/grocery.py", "split=validation,", ("baseline", "snca_plus", "maskcon"))
    return tuple(
        _changed(row, f"{row.name}_{rate}", optimizer__learning_rate=rate) for row in rows for rate in (0.04, 0.12, 0.4)
    )


def _to(dataset: str) -> tuple[Row, ...]:
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


_TUNED = Table(
    (),
    {"top1": "**top-1**", "knn_top1": "k-NN", "recall@1": "R@1", "map": "mAP"},
    facts={
        "network": lambda config: config["model.trunk"],
        "trunk": lambda config: f"from `{row}`" if (row := row_of(config["model.pretrained"])) else "from scratch",
        "test images": lambda config: f"{config['eval.size'] or config['views.size']} px",
    },
    notes={"baseline": " (fine-tuned)"},
    layers=("trunk",),
)

TABLES = {
    "quickstart": Table(
        by_method("configs/digits.py", "", (RAW_PIXELS, "baseline", "baseline_mlp", "grafit")),
        _COLUMNS,
        gallery=("baseline", "grafit"),
        notes={
            RAW_PIXELS: " (no training)",
            "baseline": " (coarse cross-entropy)",
            "baseline_mlp": " (the same through Grafit's projector)",
            "grafit": " (k-NN + instance loss)",
        },
        layers=("trunk",),
    ),
    "cifar100_cpu": Table(
        by_method(
            "configs/cifar100.py",
            "preset=cpu,",
            {"baseline": 1, "baseline_mlp": 2, "snca_plus": 1, "byol": 1, "grafit_fc": 1, "grafit": 2},
        ),
        _COLUMNS,
    ),
    "cifar100_cpu_long": Table(
        by_method("configs/cifar100.py", "preset=cpu_long,", ("baseline_mlp", "grafit")), _COLUMNS
    ),
    "cifar100_epochs": Table(
        by_method("configs/cifar100.py", "preset=cpu_epochs,", ("baseline", "baseline_mlp", "grafit")), _COLUMNS
    ),
    # Train level x test level.
    "cifar100_levels": Table(
        by_method("configs/cifar100.py", "preset=cpu_short,", ("baseline", "clusterfit", "grafit"), ("coarse", "fine")),
        _BY_LEVEL,
        facts={"trained on": _trained_on},
        levels=("coarse", "fine"),
    ),
    "omniglot": Table(
        by_method("configs/omniglot.py", "", ("baseline", "baseline_mlp", "snca_plus", "grafit")), _COLUMNS
    ),
    "grocery": Table(
        _grocery(),
        {
            "map": "**mAP**",
            "knn_top1": "k-NN",
            "recall@1": "R@1 among test photos",
            "gallery/recall@1": "R@1 from training photos",
            "coarse/knn_top1": "coarse k-NN",
        },
        facts={"protocol": _FACTS["protocol"], "epochs": _number("train.epochs")},
        notes={"frozen": " (nothing trained)"},
        pretrained=_LITE0,
    ),
    "grocery_rates": Table(
        _grocery_rates(),
        {**_COLUMNS, "gallery/recall@1": "R@1 from training photos"},
        facts={"protocol": _FACTS["protocol"], "learning rate": _number("optimizer.learning_rate")},
        pretrained=_LITE0,
        layers=("trunk",),
    ),
    "transfer": dataclasses.replace(_TUNED, rows=_transfer(), facts={"trunk": _TUNED.facts["trunk"]}),
    **{
        # They share the folder of table imagenet, whose trunks they start from.
        f"transfer_{dataset}": dataclasses.replace(_TUNED, rows=_to(dataset), folder="imagenet")
        for dataset in published.TRANSFER
    },
    "cifar100_gpu": Table(
        _gpu(),
        _STUDY,
        facts={
            "protocol": _FACTS["protocol"],
            "trained on": _trained_on,
            "epochs": _number("train.epochs"),
            "λ": _number("loss.instance_weight"),
            "projector ends in": lambda config: (
                "a batch norm" if config.get("model.projector_norm") else "a linear layer"
            ),
        },
    ),
    "cifar100_fine": Table(by_method("configs/cifar100.py", "preset=paper,", ("grafit",), ("fine",)), _COLUMNS),
    "cifar100_paper": Table(by_method("configs/cifar100.py", "preset=paper,", published.OF_PAPER), _STUDY),
    "imagenet": Table(
        by_method("configs/imagenet.py", "", published.OF_PAPER, ("coarse", "fine")),
        _BY_LEVEL,
        facts={"trained on": _trained_on},
        levels=("coarse", "fine"),
    ),
    **{
        f"inaturalist{year}": Table(
            by_method("configs/inaturalist.py", f"year={year},", published.OF_PAPER, published.LEVELS),
            _BY_LEVEL,
            facts={"trained on": _trained_on},
            levels=published.LEVELS,
        )
        for year in (2018, 2019)
    },
    "maskcon_cpu": Table(
        _maskcon_cpu(),
        _RECALL,
        facts=_OF_CIFAR100,
        folder="study/cifar100_maskcon",
    ),
    "study_cifar100": Table(_CIFAR100, _STUDY, facts={"protocol": _FACTS["protocol"]}, folder="study/cifar100"),
    "study_omniglot": Table(
        by_method("configs/omniglot.py", "", _OF_PAPER | dict.fromkeys((*_OF_MASKCON, *_LATER), 2)),
        _STUDY,
        facts={"protocol": _FACTS["protocol"]},
        folder="study/omniglot",
    ),
    "study_ablations": Table(
        _ablations(),
        _STUDY,
        facts={letter: _number(key) for key, letter in _LETTERS.items()},
        folder="study/cifar100",
    ),
    **{
        published.table_name(dataset, pretrained=pretrained): Table(
            by_method("configs/maskcon.py", f"dataset={dataset},", ("frozen", *_MASKCON))
            if pretrained
            else _maskcon_gpu(dataset),
            _RECALL,
            facts={**(_OF_CIFAR100 if dataset == "cifar100" else _FACTS), **_OF_MIXTURES},
            pretrained="hf:timm/resnet18.tv_in1k" if pretrained else "",
        )
        for dataset in published.MASKCON
        for pretrained in (False, True)
    },
}

# Family -> scale -> table, for `--table` and `--scale`. In protocol "maskcon", scale gpu trains from scratch, and scale
# paper starts from pretrained weights as the published rows do.
FAMILIES: Mapping[str, Mapping[str, str]] = {
    "cifar100": {"cpu": "study_cifar100", "gpu": "cifar100_gpu", "paper": "cifar100_paper"},
    "cifar100_epochs": {"cpu": "cifar100_epochs"},
    "omniglot": {"cpu": "study_omniglot"},
    "grocery": {"cpu": "grocery"},
    "grocery_rates": {"cpu": "grocery_rates"},
    "ablations": {"cpu": "study_ablations"},
    **{name: {"paper": name} for name in ("imagenet", "inaturalist2018", "inaturalist2019")},
    **{f"transfer_{dataset}": {"paper": f"transfer_{dataset}"} for dataset in published.TRANSFER},
    "transfer_cifar100": {"cpu": "transfer", "paper": "transfer_cifar100"},
    **{
        f"maskcon_{dataset}": {
            **({"cpu": "maskcon_cpu"} if dataset == "cifar100" else {}),
            "gpu": published.table_name(dataset, pretrained=False),
            "paper": published.table_name(dataset, pretrained=True),
        }
        for dataset in published.MASKCON
    },
}
SCALES = ("cpu", "gpu", "paper")


def find(name: str, scale: str | None = None) -> str:
    """Returns the name of a table: `name` itself, or the table of family `name` at a scale (default: its smallest).

    Raises:
      UserError: an unknown name or scale.
    """
    if name in TABLES and (scale is None or name in at(scale)):
        return name
    scales = FAMILIES[choose(name, "table", FAMILIES if scale else (*TABLES, *FAMILIES))]
    if scale is not None and scale not in scales:
        raise UserError(f"found --scale={scale} for table {name}; expected one of {', '.join(scales)}.")
    return scales[scale or next(iter(scales))]


def at(scale: str) -> list[str]:
    """Returns the tables of all families at a scale."""
    return [scales[scale] for scales in FAMILIES.values() if scale in scales]
