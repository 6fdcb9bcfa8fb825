"""The published retrieval rows of protocol "maskcon" (PAPER.md section 4), and how far ours are from being measured."""

import dataclasses
import pathlib
from collections.abc import Callable

from grafit_jax import report
from grafit_jax.errors import reading
from grafit_jax.reading import read_json

# Under Grafit's name the MaskCon paper means this method.
METHOD = "grafit_maskcon"
_KS = (1, 2, 5, 10)


@dataclasses.dataclass(frozen=True)
class Row:
    """A published row.

    Attributes:
      title: the data set.
      recall: what is to be reached at R@1, 2, 5 and 10, in percent, by a trunk that starts pretrained [seed].
      data: what has to be got by hand before it can be run; empty if nothing.
      hours: of a run on one GPU, by arithmetic (configs/maskcon.py).
    """

    title: str
    recall: tuple[float, float, float, float]
    data: str
    hours: str


# By what configs/maskcon.py calls the data set.
ROWS = {
    "cifar100": Row("CIFAR-100 (20 → 100)", (60.57, 71.13, 82.32, 89.21), "", "10 minutes"),
    "cars": Row(
        "Stanford Cars (8 → 196)", (42.3, 54.79, 71.1, 81.74), "the images, whose public download is gone", "25 minutes"
    ),
    "imagenet32": Row(
        "ImageNet32 (12 → 1000)", (18.13, 25.46, 37.19, 46.64), "the images, from image-net.org", "4 hours"
    ),
    "sop": Row(
        "Stanford Online Products", (74.02, 78.82, 84.13, 87.91), "the images, 3 GB from Stanford", "80 minutes"
    ),
}
_WEIGHTS = "torchvision's resnet18 weights"


def table_name(dataset: str, *, pretrained: bool) -> str:
    """What `tables.TABLES` calls the runs of a row."""
    return f"maskcon_{dataset}{'_pretrained' if pretrained else ''}"


def render(results_path: Callable[[str], pathlib.Path]) -> str:
    """Every row twice, by what the trunk started from: in each cell ours / what is to be reached, then its state."""
    lines = []
    for dataset, row in ROWS.items():
        for pretrained in (True, False):
            path = results_path(table_name(dataset, pretrained=pretrained))
            ours = _measured(path) if path.is_file() else {}
            cells = [f"{_cell(ours, k)} / {published:g}" for k, published in zip(_KS, row.recall, strict=True)]
            start = "pretrained" if pretrained else "from scratch"
            lines.append([row.title, start, *cells, "measured" if ours else _state(row, pretrained=pretrained)])
    return report.markdown(["data set", "trunk starts", *(f"R@{k}" for k in _KS), "state"], lines)


def _measured(path: pathlib.Path) -> dict[int, float]:
    """R@k in percent of the recorded seed 0; nothing where the method was not run."""
    want = "want recorded results; record them again with experiments/reproduce.py"
    results = read_json(path, list, want)
    with reading(path, want):
        recorded = [r for r in results if r["method"] == METHOD and r["seed"] == 0]
        return {k: 100.0 * recorded[0]["metrics"][f"recall@{k}"] for k in _KS} if recorded else {}


def _cell(ours: dict[int, float], k: int) -> str:
    return f"{ours[k]:.2f}" if ours else "–"


def _state(row: Row, *, pretrained: bool) -> str:
    lacking = [what for what in (row.data, _WEIGHTS if pretrained else "") if what]
    if lacking:
        return f"blocked: needs {', and '.join(lacking)}"
    return f"ready, not run: {row.hours} on one GPU, and none was at hand"
