"""The paper's claims against recorded results: differences between rows, with confidence intervals over seeds."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from grafit_jax import methods
from grafit_jax.runs.results import HEADLINE, Result, at_layer
from grafit_jax.runs.tables import markdown
from study.layout import percent
from study.recording import check_together, own_layer

# Level of the confidence intervals. Of so many differences, a few are decided by chance.
_CONFIDENCE = 0.95


class Claim(NamedTuple):
    """A claim that row `ahead` is ahead of row `behind`, in words, and the names of the STUDIES that test it."""

    text: str
    ahead: str
    behind: str
    studies: tuple[str, ...]


# Name -> title and tables. The tables of a study share data set, recipe and budget, so their seeds share one variance.
STUDIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "cifar100": ("CIFAR-100, 4 → 20", ("study_cifar100", "study_ablations")),
    "omniglot": ("Omniglot, 30 → 964", ("study_omniglot",)),
    "maskcon": ("CIFAR-100, 20 → 100, 6 epochs", ("maskcon_cpu",)),
    "gpu": ("CIFAR-100, 20 → 100, 50 epochs of a ResNet-18", ("cifar100_gpu",)),
    "grocery": ("Grocery Store, 43 → 81, 8 epochs from ImageNet weights", ("grocery",)),
    "plus_cifar100": ("CIFAR-100, 4 → 20, fresh seeds", ("plus_cifar100",)),
    "plus_omniglot": ("Omniglot, 30 → 964, fresh seeds", ("plus_omniglot",)),
    "plus_grocery": ("Grocery Store, 43 → 81, 8 epochs from ImageNet weights, fresh seeds", ("plus_grocery",)),
}
_PAPER = ("cifar100", "omniglot", "gpu")
_AND_PHOTOS = (*_PAPER, "grocery")
_ALL = ("cifar100", "omniglot", "maskcon", "gpu", "grocery")
_ABLATED = ("cifar100",)
# The rows of the README's summary: study, row.
SUMMARY = (
    ("cifar100", "grafit"),
    ("omniglot", "grafit"),
    ("gpu", "grafit"),
    ("gpu", "grafit_lambda_4"),
    ("grocery", "grafit"),
)
CLAIMS: Mapping[str, tuple[Claim, ...]] = {
    "about Grafit": (
        Claim("Grafit finds finer classes than coarse cross-entropy", "grafit", "baseline", _AND_PHOTOS),
        Claim("Grafit finds finer classes than MaskCon's `supce`", "grafit", "supce", ("maskcon",)),
        Claim("Grafit finds finer classes than cross-entropy through its projector", "grafit", "baseline_mlp", _ALL),
        Claim("The instance loss adds to the k-NN loss", "grafit", "snca_plus", _ALL),
        Claim("Coarse labels add to the instance loss", "grafit", "byol", _PAPER),
        Claim("Neighbours teach more than a linear classifier", "grafit", "grafit_fc", _AND_PHOTOS),
        Claim("Grafit is ahead of SNCA", "grafit", "snca", _PAPER),
        Claim("SNCA gains by Grafit's projector", "snca_plus", "snca", _PAPER),
        Claim("Clusters of a baseline's features teach more than its labels", "clusterfit", "baseline", _PAPER),
        Claim("Grafit is ahead of ClusterFit+", "grafit", "clusterfit_plus", _PAPER),
    ),
    "about `grafit_plus` [ours]": (
        Claim(
            "Grafit with λ = 4 and joined layers is ahead of coarse cross-entropy",
            "grafit_plus",
            "baseline",
            ("plus_cifar100", "plus_omniglot", "plus_grocery"),
        ),
    ),
    "about initial weights": (
        Claim("Training on coarse labels improves an ImageNet trunk", "baseline", "frozen", ("grocery",)),
        Claim("Grafit improves it", "grafit", "frozen", ("grocery",)),
    ),
    "about Grafit's defaults": (
        Claim("More views: T = 4 rather than 2", "grafit_views_4", "grafit", _ABLATED),
        Claim("λ = 1 rather than 0.3", "grafit", "grafit_lambda_0.3", _ABLATED),
        Claim("λ = 1 rather than 3", "grafit", "grafit_lambda_3", _ABLATED),
        Claim("σ = 0.05 rather than 0.02", "grafit", "grafit_sigma_0.02", _ABLATED),
        Claim("σ = 0.05 rather than 0.1", "grafit", "grafit_sigma_0.1", _ABLATED),
        Claim("A memory of momentum ½ rather than 0", "grafit", "grafit_memory_0", _ABLATED),
        Claim("A memory of momentum ½ rather than 0.9", "grafit", "grafit_memory_0.9", _ABLATED),
        Claim("A moving-average target helps", "grafit", "grafit_ema_off", _ABLATED),
        Claim("A projector helps", "grafit", "grafit_projector_off", _ABLATED),
    ),
    "of the MaskCon paper": tuple(
        Claim(f"`maskcon` is ahead of `{other}`", "maskcon", other, ("omniglot", "maskcon"))
        for other in ("grafit_maskcon", "coins", "supcon", "selfcon", "supce")
    ),
    "about later methods": (
        Claim("The spread loss is ahead of SupCon", "spread", "supcon", ("omniglot",)),
        Claim("The spread loss is ahead of Grafit", "spread", "grafit", _PAPER),
        Claim("ANCOR is ahead of coarse cross-entropy", "ancor", "baseline", _PAPER),
        Claim("ANCOR is ahead of Grafit", "ancor", "grafit", _PAPER),
    ),
}


class Difference(NamedTuple):
    """A difference of two means over seeds, in points, and half its confidence interval (nan: no repeated seeds)."""

    points: float
    margin: float

    @property
    def decided(self) -> bool:
        return abs(self.points) > self.margin


def difference(runs: Sequence[Result], claim: Claim, metric: str, layer: str) -> Difference | None:
    """Returns the difference between the claim's rows in one study; None if a row was not evaluated at that layer.

    Args:
      runs: of one study.
      claim: names the two rows.
      metric: as in `HEADLINE`.
      layer: "trunk" or "projector" for both rows, or "own": for each row `recording.own_layer`.

    The margin is Student's t for two means, with one standard deviation pooled over all rows.
    """
    by_row: dict[str, dict[int, float]] = {}  # a run may appear in several tables
    for run in runs:
        at = own_layer(run["method"]) if layer == "own" else layer
        value = run["metrics"].get(at_layer(run["config"], metric, at))
        if value is not None:
            by_row.setdefault(run["row"], {})[run["seed"]] = 100 * value
    values = {row: np.array(list(seeds.values())) for row, seeds in by_row.items()}
    if claim.ahead not in values or claim.behind not in values:
        return None
    ahead, behind = values[claim.ahead], values[claim.behind]
    freedom = sum(len(v) - 1 for v in values.values())
    margin = math.nan
    if freedom:
        deviation = math.sqrt(sum(float(v.var()) * len(v) for v in values.values()) / freedom)
        quantile = float(special.stdtrit(freedom, (1 + _CONFIDENCE) / 2))
        margin = quantile * deviation * math.sqrt(1 / len(ahead) + 1 / len(behind))
    return Difference(float(ahead.mean() - behind.mean()), margin)


# Heading of a metric -> difference; None where it was not measured.
Compared = Mapping[str, Difference | None]


def _decided(found: Compared) -> tuple[list[str], list[str]]:
    """Returns the metrics in which the row is ahead, and those in which it is behind, by more than the margin."""
    points = {name: d.points for name, d in found.items() if d is not None and d.decided}
    return [name for name in points if points[name] > 0], [name for name in points if points[name] < 0]


def verdict(found: Compared) -> str:
    """Returns the verdict on a claim from the differences in all metrics."""
    known = sum(d is not None for d in found.values())
    ahead, behind = _decided(found)
    if ahead and behind:
        return f"holds in {', '.join(ahead)}; not in {', '.join(behind)}"
    for words, names in (("holds", ahead), ("does not hold", behind)):
        if names:
            return f"**{words}**" if len(names) == known else f"{words} in {', '.join(names)}"
    return "undecided" if known else "not run"


def render(recorded: Mapping[str, Sequence[Result]]) -> str:
    """Returns all claims in Markdown, tested on the recorded results.

    Raises:
      UserError: as `check`.
    """
    check(recorded)
    header = ("claim", "study", "layers", *(f"Δ {name}" for name in HEADLINE.values()), "verdict")
    parts = []
    for heading, claims in CLAIMS.items():
        rows = []
        for claim in claims:
            text = f"{claim.text}: `{claim.ahead}` − `{claim.behind}`"
            for title, layers, found in _compared(claim, recorded):
                rows.append([text, title, layers, *map(_cell, found.values()), verdict(found)])
                text = ""
        parts.append(f"### Claims {heading}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def check(recorded: Mapping[str, Sequence[Result]]) -> None:
    """Raises a UserError if tables of one study used different images."""
    for _, tables in STUDIES.values():
        check_together(_runs(tables, recorded), " and ".join(tables))


def _compared(claim: Claim, recorded: Mapping[str, Sequence[Result]]) -> Iterator[tuple[str, str, Compared]]:
    """Yields study title, compared layers and differences: first at the trunk, then at the layers that the losses see.

    Where neither row has a projector, both are the trunk, and it is yielded once.
    """
    for title, tables in (STUDIES[study] for study in claim.studies):
        runs = _runs(tables, recorded)
        # A row that has not run has the name of its method, or is a variant of Grafit.
        own: dict[str, str] = {name: own_layer(name) for name in methods.METHODS}
        own.update({run["row"]: own_layer(run["method"]) for run in runs})
        ahead, behind = (own.get(row, own["grafit"]) for row in (claim.ahead, claim.behind))
        layers = {"trunk": "trunk"} | ({ahead: ahead} if ahead == behind else {f"{ahead} − {behind}": "own"})
        for words, layer in layers.items() if runs else ():
            yield title, words, {name: difference(runs, claim, metric, layer) for metric, name in HEADLINE.items()}


def summary(recorded: Mapping[str, Sequence[Result]]) -> str:
    """Returns Grafit beside coarse cross-entropy in Markdown, in percent: a row for each recorded entry of SUMMARY."""
    rows = []
    for study, row in SUMMARY:
        title, tables = STUDIES[study]
        runs = _runs(tables, recorded)
        # A run may appear in several tables.
        ours, theirs = ([*{r["seed"]: r for r in runs if r["row"] == name}.values()] for name in (row, "baseline"))
        if ours and theirs:
            by_layer = (_means(theirs, "trunk"), _means(ours, "trunk"), _means(ours, "projector"))
            weight = f"{ours[0]['config']['loss.instance_weight']:g}"
            rows.append([title, f"λ = {weight}", *by_layer, str(min(len(ours), len(theirs)))])
    header = ("data, coarse → fine classes", "Grafit", "cross-entropy", "Grafit, trunk", "Grafit, projector", "seeds")
    return markdown(header, rows) if rows else ""


def _means(runs: Sequence[Result], layer: str) -> str:
    """The metrics of HEADLINE at a layer, means over the runs."""
    values = ([run["metrics"].get(at_layer(run["config"], metric, layer)) for run in runs] for metric in HEADLINE)
    return " / ".join(percent(of_metric, deviation=False) for of_metric in values)


def _runs(tables: Iterable[str], recorded: Mapping[str, Sequence[Result]]) -> list[Result]:
    """Returns the runs of some tables."""
    return [run for table in tables for run in recorded.get(table, ())]


def _cell(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    margin = "?" if math.isnan(difference.margin) else f"{difference.margin:.1f}"
    return f"{difference.points:+.1f} ± {margin}"
