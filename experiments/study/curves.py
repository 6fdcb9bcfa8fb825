"""Metrics over the epochs of training, by method: a table and a picture.

Claims use the end of training. The best epoch is chosen on test data: an oracle, shown for information only.
"""

import math
import pathlib
from collections.abc import Sequence

import numpy as np

from grafit_jax.config import LAYERS
from grafit_jax.runs.results import HEADLINE, Result, at_layer
from grafit_jax.runs.tables import markdown


def means(runs: Sequence[Result], metric: str, layer: str) -> dict[int, float]:
    """Returns epoch -> mean percent over the seeds of a row, for the epochs at which every seed was evaluated."""
    found = []
    for run in runs:
        key = at_layer(run["config"], metric, layer)
        found.append({int(at["epoch"]): 100 * at[key] for at in run["run"].get("curve", ()) if key in at})
    epochs = set.intersection(*map(set, found)) if found else set()
    return {epoch: float(np.mean([of_run[epoch] for of_run in found])) for epoch in sorted(epochs)}


def _lines(found: Sequence[Result]) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
    """Returns (row, layer) -> metric -> epoch -> percent, for rows that were evaluated more than once."""
    lines = {}
    for row in dict.fromkeys(run["row"] for run in found):
        runs = [run for run in found if run["row"] == row]
        for layer in LAYERS:
            of_metric = {metric: means(runs, metric, layer) for metric in HEADLINE}
            if any(len(values) > 1 for values in of_metric.values()):
                lines[row, layer] = of_metric
    return lines


def render(found: Sequence[Result]) -> str:
    """Returns the metrics at the end of training and at the best epoch in Markdown; "" without curves."""
    rows = []
    for (row, layer), of_metric in _lines(found).items():
        cells = []
        for values in of_metric.values():
            best = max(values, key=values.__getitem__, default=0)
            cells += [f"{values[max(values)]:.1f}", f"{values[best]:.1f} (epoch {best})"] if values else ["–", "–"]
        rows.append([f"`{row}`", layer, *cells])
    header = [f"{heading}{what}" for heading in HEADLINE.values() for what in (" at the end", ", best epoch (oracle)")]
    return markdown(["method", "layer", *header], rows) if rows else ""


def picture(path: pathlib.Path, found: Sequence[Result]) -> None:
    """Writes a PNG: a row of panels per layer, a panel per metric, a line per row of the table."""
    lines = _lines(found)
    names = list(dict.fromkeys(row for row, _ in lines))
    layers = [layer for layer in LAYERS if any(place[1] == layer for place in lines)]
    from matplotlib.figure import Figure  # imported here because it is slow to import

    figure = Figure(figsize=(9, 2.6 * len(layers)))
    axes = figure.subplots(len(layers), len(HEADLINE), squeeze=False, sharex=True, sharey="col")
    for row_of_axes, layer in zip(axes, layers, strict=True):
        for ax, (metric, heading) in zip(row_of_axes, HEADLINE.items(), strict=True):
            for i, row in enumerate(names):
                values = lines.get((row, layer), {}).get(metric, {})
                if values:
                    line = ("-", "--", ":", "-.")[i % 4]
                    ax.plot([*values], [*values.values()], f"C{i % 10}o{line}", label=row, markersize=2.5)
            ax.set_title(f"fine {heading}, {layer}", fontsize=9)
            ax.tick_params(labelsize=7)
            ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("epoch", fontsize=8)
    handles, labels = max((ax.get_legend_handles_labels() for ax in axes.flat), key=lambda found: len(found[1]))
    columns = 5
    figure.legend(handles, labels, loc="upper center", ncols=min(len(names), columns), fontsize=8, frameon=False)
    inches = 0.15 + 0.2 * math.ceil(len(names) / columns)
    figure.tight_layout(rect=(0, 0, 1, 1 - inches / figure.get_figheight()))
    figure.savefig(path, dpi=110)
