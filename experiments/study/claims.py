"""What holds of the paper's claims in recorded results: differences between rows, and whether seeds explain them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from grafit_jax import methods
from grafit_jax.report.tables import markdown
from grafit_jax.runs.results import HEADLINE, Result, at_layer
from study.recording import RAW_PIXELS, check_together
from study.tables import AS_IT_WAS

# Of the interval in which a difference lies. With so many differences some are outside of theirs by chance.
_CONFIDENCE = 0.95


class Claim(NamedTuple):
    """That row `ahead` of a table is ahead of row `behind`: in words, and the names in STUDIES of where to look."""

    text: str
    ahead: str
    behind: str
    studies: tuple[str, ...]


# Name -> title, and the tables of one data set, recipe and budget, by whose seeds noise is known.
STUDIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "cifar100": ("CIFAR-100, 4 → 20", ("study_cifar100", "study_ablations")),
    "omniglot": ("Omniglot, 30 → 964", ("study_omniglot",)),
    "maskcon": ("CIFAR-100, 20 → 100, 6 epochs", ("maskcon_cpu",)),
    "gpu": ("CIFAR-100, 20 → 100, 50 epochs of a ResNet-18", ("cifar100_gpu",)),
}
_PAPER = ("cifar100", "omniglot", "gpu")
_ALL = tuple(STUDIES)
_ABLATED = ("cifar100",)
# The controls in the README's summary.
IN_SHORT = ("baseline", "baseline_mlp", "snca")
CLAIMS: Mapping[str, tuple[Claim, ...]] = {
    "of the method": (
        Claim("Grafit finds finer classes than coarse cross-entropy", "grafit", "baseline", _PAPER),
        Claim("… the same (as MaskCon's `supce`)", "grafit", "supce", ("maskcon",)),
        Claim("… and not for its projector alone", "grafit", "baseline_mlp", _ALL),
        Claim("The instance loss adds to the k-NN loss", "grafit", "snca_plus", _ALL),
        Claim("Coarse labels add to the instance loss", "grafit", "byol", _PAPER),
        Claim("Neighbours teach more than a linear classifier", "grafit", "grafit_fc", _PAPER),
        Claim("Grafit is ahead of SNCA", "grafit", "snca", _PAPER),
        Claim("SNCA gains by Grafit's recipe and projector", "snca_plus", "snca", _PAPER),
        Claim("Clusters of a baseline's features teach more than its labels", "clusterfit", "baseline", _PAPER),
        Claim("Grafit is ahead of ClusterFit+", "grafit", "clusterfit_plus", _PAPER),
    ),
    "of its defaults": (
        Claim("More views: T = 4 rather than 2", "grafit_views_4", "grafit", _ABLATED),
        Claim("λ = 1 rather than 0.3", "grafit", "grafit_lambda_0.3", _ABLATED),
        Claim("λ = 1 rather than 3", "grafit", "grafit_lambda_3", _ABLATED),
        Claim("σ = 0.05 rather than 0.02", "grafit", "grafit_sigma_0.02", _ABLATED),
        Claim("σ = 0.05 rather than 0.1", "grafit", "grafit_sigma_0.1", _ABLATED),
        Claim("A memory of momentum ½ rather than 0", "grafit", "grafit_memory_0", _ABLATED),
        Claim("A memory of momentum ½ rather than 0.9", "grafit", "grafit_memory_0.9", _ABLATED),
        Claim("A target that is a moving average", "grafit", "grafit_ema_off", _ABLATED),
        Claim("Losses behind a projector", "grafit", "grafit_projector_off", _ABLATED),
    ),
    "of the MaskCon paper": tuple(
        Claim(f"`maskcon` is ahead of `{other}`", "maskcon", other, ("omniglot", "maskcon"))
        for other in ("grafit_maskcon", "coins", "supcon", "selfcon", "supce")
    ),
}


class Difference(NamedTuple):
    """Between two means over seeds, in points, with half of its confidence interval; nan where no row has two seeds."""

    points: float
    margin: float

    @property
    def decided(self) -> bool:
        return abs(self.points) > self.margin


def own_layer(method: str) -> str:
    """Where a method's k-NN loss or classifier lives: its projector, or the trunk without one."""
    return "projector" if method != RAW_PIXELS and methods.get(method).projector else "trunk"


def difference(runs: Sequence[Result], claim: Claim, metric: str, layer: str) -> Difference | None:
    """Between the claim's two rows, among runs of one study; None where one of the rows was not measured at that layer.

    The layer is "trunk" or "projector" for both rows, or "own": for each the one that its loss sees. The margin is
    Student's, for two means and one standard deviation that all rows share.
    """
    by_row: dict[str, dict[int, float]] = {}  # a run may be in several tables
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
        quantile = float(special.stdtrit(freedom, (1 + _CONFIDENCE) / 2))  # of Student's t
        margin = quantile * deviation * math.sqrt(1 / len(ahead) + 1 / len(behind))
    return Difference(float(ahead.mean() - behind.mean()), margin)


# The heading of a metric -> its difference; None where that was not measured.
Compared = Mapping[str, Difference | None]


def _decided(found: Compared) -> tuple[list[str], list[str]]:
    """The metrics in which the row is ahead, and those in which it is behind, beyond the margin."""
    points = {name: d.points for name, d in found.items() if d is not None and d.decided}
    return [name for name in points if points[name] > 0], [name for name in points if points[name] < 0]


def verdict(found: Compared) -> str:
    """The verdict on a claim by the differences of all metrics."""
    known = sum(d is not None for d in found.values())
    ahead, behind = _decided(found)
    if ahead and behind:
        return f"holds in {', '.join(ahead)}; not in {', '.join(behind)}"
    for words, names in (("holds", ahead), ("does not hold", behind)):
        if names:
            return f"**{words}**" if len(names) == known else f"{words} in {', '.join(names)}"
    return "not decided" if known else "not run"


def render(recorded: Mapping[str, Sequence[Result]]) -> str:
    """All claims in Markdown, each where it is looked at, as far as results are recorded; UserError as `check`."""
    check(recorded)
    header = ("claim", "ahead − behind", "where", "layers", *(f"Δ {name}" for name in HEADLINE.values()), "verdict")
    parts = []
    for heading, claims in CLAIMS.items():
        rows = []
        for claim in claims:
            text, pair = claim.text, f"`{claim.ahead}` − `{claim.behind}`"
            for title, layers, found in _compared(claim, recorded):
                rows.append([text, pair, title, layers, *map(_cell, found.values()), verdict(found)])
                text = ""
        parts.append(f"### Claims {heading}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def check(recorded: Mapping[str, Sequence[Result]]) -> None:
    """Raises a UserError for tables of one study that are not of the same images."""
    for _, tables in STUDIES.values():
        check_together(_runs(tables, recorded), " and ".join(tables))


def _compared(claim: Claim, recorded: Mapping[str, Sequence[Result]]) -> Iterator[tuple[str, str, Compared]]:
    """The title of every study with results, the layers at which the claim's rows are compared, and the differences.

    The trunks first; last each row at the layer that its loss sees, which is the trunk again where neither has a
    projector.
    """
    for title, tables in (STUDIES[study] for study in claim.studies):
        runs = _runs(tables, recorded)
        own = {run["row"]: own_layer(run["method"]) for run in runs}
        ahead, behind = own.get(claim.ahead, "trunk"), own.get(claim.behind, "trunk")
        layers = {"trunk": "trunk"} | ({ahead: ahead} if ahead == behind else {f"{ahead} − {behind}": "own"})
        for words, layer in layers.items() if runs else ():
            yield title, words, {name: difference(runs, claim, metric, layer) for metric, name in HEADLINE.items()}


def in_short(recorded: Mapping[str, Sequence[Result]]) -> str:
    """How Grafit stands against those of IN_SHORT that are recorded, in Markdown: a sentence for each."""
    lines = []
    for claim in (c for c in CLAIMS["of the method"] if c.ahead == "grafit" and c.behind in IN_SHORT):
        places: dict[str, list[str]] = {}
        for title, layers, found in _compared(claim, recorded):
            if any(found.values()):
                places.setdefault(title, []).append(f"{_standing(found)} ({layers})")
        if places:
            said = "; ".join(f"{title}: {', '.join(of_layers)}" for title, of_layers in places.items())
            lines.append(f"- `grafit` against `{claim.behind}`. {said}.")
    return "\n".join(lines)


def _standing(found: Compared) -> str:
    """As "ahead in mAP and R@1, behind in k-NN": what is decided of the differences of some metrics."""
    parts = [
        f"{word} in {'all three' if len(names) == len(HEADLINE) else ' and '.join(names)}"
        for word, names in zip(("ahead", "behind"), _decided(found), strict=True)
        if names
    ]
    return ", ".join(parts) or "undecided"


def _runs(tables: Iterable[str], recorded: Mapping[str, Sequence[Result]]) -> list[Result]:
    """Those of one recipe: without the rows that a table keeps of an older one."""
    return [run for table in tables for run in recorded.get(table, ()) if not run["row"].endswith(AS_IT_WAS)]


def _cell(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    margin = "?" if math.isnan(difference.margin) else f"{difference.margin:.1f}"
    return f"{difference.points:+.1f} ± {margin}"
