"""Page header, and page section: the metrics of each run."""

import numpy as np

from grafit_jax.config import LAYERS
from grafit_jax.report import markup
from grafit_jax.report.markup import Section, text
from grafit_jax.report.shown import Shown
from grafit_jax.runs.results import CLUSTERS, SUMMARY, by_layer_and_level

_PERCENT = {"map": "mAP", "knn_top1": "k-NN", "top1": "top-1", "probe_top1": "probe"} | {
    metric: f"clusters: {name}" for metric, name in CLUSTERS.items()
}
_CLUSTERS = "Clusters: k-means of the test images against their classes; “within”, in each coarse class alone. "


def headline(shown: Shown) -> str:
    """Returns the data set size and the headline metrics of each run."""
    fine, *_ = shown.classes
    prefix = "" if fine.level == shown.test.finest else f"{fine.level}/"
    levels = ", ".join(f"{len(np.unique(c.label)):,} classes at level {c.level}" for c in shown.classes)
    tiles = ""
    for run in shown.runs:
        values = {name: run.result["metrics"].get(prefix + key) for key, name in SUMMARY.items()}
        numbers = "".join(f"<div><dt>{k}</dt><dd>{100 * v:.1f}</dd></div>" for k, v in values.items() if v is not None)
        tiles += (
            f'<div class="tile"><p class="run">{text(run.name)}</p><p class="note">method '
            f"{text(run.result['method'])}, layer {run.layer}, seed {run.result['seed']}</p><dl>{numbers}</dl></div>"
        )
    return (
        f'<p>{len(fine.label):,} test images, {text(levels)}.</p><div class="tiles">{tiles}</div>'
        f'<p class="note">Metrics at level {text(fine.level)}, in percent.</p>'
    )


def section(shown: Shown) -> Section:
    """Makes the table of metrics.json, one row per level, layer and run."""
    found = {
        (layer, level, run.name): values
        for run in shown.runs
        for (layer, level), values in by_layer_and_level(run.result["metrics"], run.layer, shown.test.finest).items()
    }
    columns = sorted(dict.fromkeys(m for values in found.values() for m in values), key=lambda m: not _is_percent(m))
    levels = [*shown.test.levels][::-1]
    order = sorted(found, key=lambda key: (LAYERS.index(key[0]), levels.index(key[1]) if key[1] in levels else 0))
    several = len(shown.runs) > 1
    rows = []
    for layer, level, run in order:
        named = [f"{level}, {layer}", run] if several else [f"{level}, {layer}"]
        values = found[layer, level, run]
        rows.append([*map(markup.name, named), *(_cell(metric, values.get(metric)) for metric in columns)])
    steps = ", ".join(f"{run.name} at step {run.result['metrics'].get('step', 0):,}" for run in shown.runs)
    note = (
        "<p>R@k and mAP: retrieval among the test images; with “gallery”, from the training images. k-NN: vote of the "
        f"nearest training images. {_CLUSTERS if CLUSTERS.keys() & {*columns} else ''}In percent; {text(steps)}.</p>"
    )
    header = ["level, layer", *(["run"] if several else []), *(text(heading(metric)) for metric in columns)]
    return Section("metrics", "Retrieval", note + markup.table("Metrics by level and layer", header, rows))


def heading(metric: str) -> str:
    """Returns the display name of a metric."""
    return _PERCENT.get(metric, metric.replace("recall@", "R@").replace("/", " ").replace("_", " "))


def _is_percent(metric: str) -> bool:
    return metric.startswith(("recall@", "gallery/")) or metric in _PERCENT


def _cell(metric: str, value: float | None) -> markup.Cell:
    if not _is_percent(metric):
        return markup.number(value, "{:g}")
    return markup.number(None if value is None else 100 * value)
