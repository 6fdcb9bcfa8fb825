"""The tables of `experiments/reproduce.py`: their rows, and how they are shown."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from grafit_jax import pretrained
from grafit_jax.data.datasets import grocery
from grafit_jax.errors import UserError, choose
from study import published, recording, row_sets
from study.recording import RAW_PIXELS
from study.rows import Table, by_method

_COLUMNS = {"map": "**mAP**", "recall@1": "R@1", "knn_top1": "k-NN", "coarse/knn_top1": "coarse k-NN"}
_STUDY = _COLUMNS | {"coarse/map": "coarse mAP"}
_WITH_CONCAT = ("trunk", "projector", "concat")
_PHOTOS = {
    "map": "**mAP**",
    "knn_top1": "k-NN",
    "recall@1": "R@1 among test photos",
    "gallery/recall@1": "R@1 from training photos",
    "coarse/knn_top1": "coarse k-NN",
}
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


def _end_of_projector(config: Mapping[str, Any]) -> str:
    return "a batch norm" if config.get("model.projector_norm") else "a linear layer"


def _trained_on(config: Mapping[str, Any]) -> str:
    return f"{' + '.join(config.get('loss.levels', ())) or config['data.train_level'] or 'coarse'} labels"


_OF_MIXTURES = {
    "w": _number("loss.maskcon_weight"),
    "t": _number("loss.maskcon_temperature"),
    "epochs": _number("train.epochs"),
}


def row_of(path: str) -> str:
    """Returns the row of a run's directory, without the seed."""
    return re.sub(r"_seed\d+$", "", pathlib.Path(path).name)


_LITE0 = pretrained.KNOWN["tf_efficientnet_lite0"]
# Config key -> symbol in the paper.
_LETTERS = {
    "views.num_views": "T",
    "loss.instance_weight": "λ",
    "loss.temperature": "σ",
    "memory.momentum": "memory momentum",
    "ema.base": "EMA rate",
}
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
    "recipe": Table(
        row_sets.recipe(),
        _COLUMNS,
        facts={
            "λ": _number("loss.instance_weight"),
            "projector ends in": _end_of_projector,
        },
        layers=_WITH_CONCAT,
    ),
    "plus_cifar100": Table(row_sets.plus("configs/cifar100.py", "preset=cpu_short,"), _STUDY, layers=_WITH_CONCAT),
    "plus_omniglot": Table(row_sets.plus("configs/omniglot.py"), _STUDY, layers=_WITH_CONCAT),
    "plus_grocery": Table(row_sets.plus("configs/grocery.py"), _PHOTOS, pretrained=_LITE0, layers=_WITH_CONCAT),
    "omniglot_levels": Table(
        row_sets.sums_of_levels("configs/omniglot.py", ("coarse",), ("fine",), ("coarse", "fine"), seeds=2),
        _BY_LEVEL,
        facts={"trained on": _trained_on},
        levels=("coarse", "fine"),
    ),
    "grocery_levels": Table(
        row_sets.grocery_levels(),
        _BY_LEVEL,
        facts={"trained on": _trained_on},
        pretrained=_LITE0,
        levels=grocery.LEVELS,
    ),
    "grocery": Table(
        row_sets.grocery(),
        _PHOTOS,
        facts={"protocol": _FACTS["protocol"], "epochs": _number("train.epochs")},
        notes={"frozen": " (nothing trained)"},
        pretrained=_LITE0,
    ),
    "grocery_rates": Table(
        row_sets.grocery_rates(),
        {**_COLUMNS, "gallery/recall@1": "R@1 from training photos"},
        facts={"protocol": _FACTS["protocol"], "learning rate": _number("optimizer.learning_rate")},
        pretrained=_LITE0,
        layers=("trunk",),
    ),
    "transfer": dataclasses.replace(_TUNED, rows=row_sets.transfer(), facts={"trunk": _TUNED.facts["trunk"]}),
    **{
        # They share the folder of table imagenet, whose trunks they start from.
        f"transfer_{dataset}": dataclasses.replace(_TUNED, rows=row_sets.transfer_to(dataset), folder="imagenet")
        for dataset in published.TRANSFER
    },
    "cifar100_gpu": Table(
        row_sets.cifar100_gpu(),
        _STUDY,
        facts={
            "protocol": _FACTS["protocol"],
            "trained on": _trained_on,
            "epochs": _number("train.epochs"),
            "λ": _number("loss.instance_weight"),
            "projector ends in": _end_of_projector,
        },
        layers=_WITH_CONCAT,
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
        row_sets.maskcon_cpu(),
        _RECALL,
        facts=_OF_CIFAR100,
        folder="study/cifar100_maskcon",
    ),
    "study_cifar100": Table(row_sets.CIFAR100, _STUDY, facts={"protocol": _FACTS["protocol"]}, folder="study/cifar100"),
    "study_omniglot": Table(
        row_sets.OMNIGLOT,
        _STUDY,
        facts={"protocol": _FACTS["protocol"]},
        folder="study/omniglot",
    ),
    "study_ablations": Table(
        row_sets.ablations(),
        _STUDY,
        facts={letter: _number(key) for key, letter in _LETTERS.items()},
        folder="study/cifar100",
    ),
    **{
        published.table_name(dataset, pretrained=pretrained): Table(
            by_method("configs/maskcon.py", f"dataset={dataset},", ("frozen", *row_sets.MASKCON))
            if pretrained
            else row_sets.maskcon_gpu(dataset),
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
    "plus_cifar100": {"cpu": "plus_cifar100"},
    "plus_omniglot": {"cpu": "plus_omniglot"},
    "plus_grocery": {"cpu": "plus_grocery"},
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
