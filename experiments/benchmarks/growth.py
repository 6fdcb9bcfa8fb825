"""Growth of a time with a size: a straight line through measurements, and their plot."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def growth(name: str, values: list[int], measure: Callable[[int], float]) -> dict[str, Any]:
    """Returns an entry: seconds over a size, with the fitted straight line and the exponent of the fitted power law."""
    seconds = [measure(value) for value in values]
    slope, intercept = np.polyfit(values, seconds, 1)
    exponent = np.polyfit(np.log(values), np.log(seconds), 1)[0]
    return {
        "work": f"seconds over {name}", "sizes": values, "curve_s": seconds, "seconds_per_unit": float(slope),
        "seconds_at_zero": float(intercept), "exponent": float(exponent),
    }  # fmt: skip


def growth_plot(path: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes a PNG with a panel for each entry."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(lines), 2.4))
    axes = figure.subplots(1, len(lines), squeeze=False)
    for ax, line in zip(axes[0], lines, strict=True):
        sizes = np.geomspace(line["sizes"][0], line["sizes"][-1])
        fitted = line["seconds_at_zero"] + line["seconds_per_unit"] * sizes
        ax.plot(sizes[fitted > 0], fitted[fitted > 0], color="#9e9e9e", linewidth=1)
        ax.plot(line["sizes"], line["curve_s"], "o", color="#1565c0", markersize=4)
        ax.set_xlabel(line["work"].removeprefix("seconds over "), fontsize=8)
        ax.tick_params(labelsize=7)
        if sizes[-1] > 100 * sizes[0]:
            ax.set(xscale="log", yscale="log")
            continue
        ax.set(xlim=(0, None), ylim=(0, 1.15 * max(line["curve_s"])))
        ax.locator_params(nbins=5)
        ax.ticklabel_format(axis="x", style="plain")
    axes[0, 0].set_ylabel("seconds", fontsize=8)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=130)
