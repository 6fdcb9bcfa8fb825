"""Results as tables and pictures. Every number comes from files that a run wrote."""

import itertools
import json
import os
import pathlib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grafit_jax import config as config_lib
from grafit_jax import neighbors, workdir
from grafit_jax.data.sources import Records
from grafit_jax.errors import UserError
from grafit_jax.reading import read_json
from grafit_jax.results import Result
from grafit_jax.results import check as check_result


def collect(path: pathlib.Path) -> Result:
    """The result of the complete run in `path`; UserError if it is not complete, or not as its run wrote it."""
    if not os.path.isfile(path / "metrics.json"):
        raise UserError(f"{path} holds no finished run (no metrics.json): let experiments/train.py end first.")
    config = workdir.read_config(path)
    want = "want what experiments/train.py wrote; remove metrics.json, and it is written again"
    metrics, run = (read_json(path / name, dict, want) for name in ("metrics.json", "run.json"))
    for name, value in [*metrics.items(), ("train_seconds", run.get("train_seconds", 0.0))]:
        if not isinstance(value, int | float) or abs(value) > 2**63:
            raise UserError(f"{path} has {str(value)[:40]!r} as {name}: {want}.")
    result = {
        "method": config.method,
        "seed": config.seed,
        "metrics": metrics,
        "run": run,
        "config": config_lib.flatten(json.loads((path / "config.json").read_text())),  # as it was sealed
    }
    return check_result(result, str(path))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; nothing, for no columns."""
    if not header:
        return ""
    return "\n".join(
        ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"] + [f"| {' | '.join(r)} |" for r in rows]
    )


def markdown_table(
    results: Sequence[Result],
    columns: Mapping[str, str],
    notes: Mapping[str, str],
    facts: Mapping[str, Callable[[Mapping[str, Any]], str]] | None = None,
) -> str:
    """A row for every method, and facts, in order of appearance: in percent, mean ± standard deviation over the seeds.

    Args:
      results: as `collect` gives them.
      columns: metric -> heading.
      notes: method -> what is said behind its name.
      facts: heading -> what is said of a result's config, in columns before the metrics.
    """
    facts = facts or {}
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        said = [fact(result["config"]) for fact in facts.values()]
        groups.setdefault((result["method"], *said), []).append(result)
    rows = []
    for (method, *said), runs in groups.items():
        cells = [_percent([r["metrics"].get(key) for r in runs]) for key in columns]
        seconds = [r["run"]["train_seconds"] for r in runs if "train_seconds" in r["run"]]
        minutes = _duration(float(np.mean(seconds))) if seconds else "-"
        views = runs[0]["run"].get("views_per_image") or "-"
        rows.append([f"`{method}`{notes.get(method, '')}", *said, *cells, str(len(runs)), str(views), minutes])
    return markdown(["method", *facts, *columns.values(), "seeds", "views an image", "training"], rows)


def level_columns(levels: Sequence[str]) -> dict[str, str]:
    """Columns for `markdown_table`: k-NN top-1, then mAP, at every level, which are given from coarse to fine."""
    prefix = {level: f"{level}/" for level in levels[:-1]} | {levels[-1]: ""}
    return {
        f"{prefix[level]}{metric}": f"{heading}, {level}"
        for metric, heading in (("knn_top1", "k-NN"), ("map", "mAP"))
        for level in levels
    }


def _percent(values: list[float | None]) -> str:
    numbers = [100 * v for v in values if v is not None]
    if not numbers:
        return "-"
    spread = f" ± {np.std(numbers, ddof=1):.1f}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):.1f}{spread}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def replace_block(text: str, name: str, block: str) -> str:
    """`text` with what stands between `<!-- name -->` and `<!-- /name -->` replaced by `block`."""
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(text):
        raise UserError(
            f"no block <!-- {name} --> … <!-- /{name} --> found: put these two lines where it should stand."
        )
    return pattern.sub(lambda m: f"{m[1]}{block}\n{m[2]}", text)


class Frame(NamedTuple):
    """What is around an image, and what that says of it.

    Attributes:
      hue: the colour's name.
      colour: as matplotlib and CSS take it.
      style: of the line, likewise.
      width: of the line, in points.
      symbol: for those who do not see colours.
      meaning: how the image stands to its query.
    """

    hue: str
    colour: str
    style: str
    width: float
    symbol: str
    meaning: str


FRAMES = {
    "query": Frame("black", "black", "solid", 2.5, "", "query"),
    "fine": Frame("green", "#2e7d32", "solid", 1.8, "✓", "same fine class"),
    "coarse": Frame("amber", "#ef9a00", "dashed", 1.8, "~", "same coarse class only"),
    "neither": Frame("red", "#c62828", "dotted", 1.8, "✗", "neither"),
    "unknown": Frame("grey", "#9e9e9e", "solid", 1.0, "?", "without labels"),
}
_LEGEND = [
    f"{frame.hue}, {frame.style}: {frame.meaning}" for frame in (FRAMES[name] for name in ("fine", "coarse", "neither"))
]

# An image [H, W, C] and its frame.
Thumbnail = tuple[np.ndarray, str]


def gallery(
    path: pathlib.Path, records: Records, embeddings: Mapping[str, np.ndarray], *, rows: int = 6, k: int = 10
) -> None:
    """A PNG of queries and their k nearest other images, side by side for every entry of `embeddings`.

    The queries are drawn once for all, one of each of the first `rows` classes of a seeded order: not chosen by what
    comes out.
    """
    if records.label is None:
        raise UserError("the gallery compares fine labels, and this split has none.")
    queries = queries_of(records.label, rows)
    sheets = {}
    for name, embedding in embeddings.items():
        near = neighbors.search(embedding[queries], embedding, k, query_ids=queries, gallery_ids=records.id)[1]
        sheets[name] = [
            [(records.image[query], "query")]
            + [(records.image[i], relation(records.label, records.coarse_label, query, i)) for i in row]
            for query, row in zip(queries, near, strict=True)
        ]
    contact_sheet(path, sheets)


def queries_of(label: np.ndarray, rows: int) -> np.ndarray:
    """Rows of queries, one of each of the first `rows` classes of a seeded order, by class."""
    draw = np.random.default_rng(0)
    classes = np.sort(draw.permutation(np.unique(label))[:rows])
    return np.array([draw.choice(np.flatnonzero(label == c)) for c in classes])


def relation(label: np.ndarray | None, coarse_label: np.ndarray | None, query: int, other: int) -> str:
    """The frame of `other` among the neighbours of `query`: fine, coarse or neither; unknown without labels."""
    if label is not None and label[query] == label[other]:
        return "fine"
    if coarse_label is not None and coarse_label[query] == coarse_label[other]:
        return "coarse"
    return "unknown" if label is None and coarse_label is None else "neither"


def contact_sheet(path: pathlib.Path, sheets: Mapping[str, Sequence[Sequence[Thumbnail]]]) -> None:
    """A PNG of rows of thumbnails, the query first, with the sheets side by side under their names.

    A solid green frame marks a neighbour of the same fine class, a dashed amber one the same coarse class alone, a
    dotted red one neither, a grey one what has no labels.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    width, height = max(len(row) for rows in sheets.values() for row in rows), max(map(len, sheets.values()))
    columns = width * len(sheets) + len(sheets) - 1
    inches = max(0.62 * (columns + 1), 2.4)
    legend: list[str] = []  # lines
    if any(frame in ("fine", "neither") for rows in sheets.values() for row in rows for _, frame in row):
        legend = ["    ".join(_LEGEND)] if inches > 5.5 else _LEGEND
    figsize = (inches, 0.72 * height + 0.85 + 0.15 * len(legend))
    figure, axes = plt.subplots(height, columns, figsize=figsize, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for number, (name, rows) in enumerate(sheets.items()):
        left = number * (width + 1)
        for row, thumbnails in zip(axes, rows, strict=True):
            for ax, thumbnail in zip(row[left:], thumbnails, strict=False):
                _draw(ax, *thumbnail)
        axes[0, left].set_title("query", fontsize=8)
        axes[0, left + (width + 1) // 2].set_title(f"{name}: nearest first", fontsize=9)
    figure.text(0.5, 0.012, "\n".join(legend), ha="center", fontsize=8)
    figure.tight_layout(rect=(0, (0.02 + 0.15 * len(legend)) / figsize[1], 1, 1), pad=0.3)
    figure.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.05)
    plt.close(figure)


def _draw(ax, image: np.ndarray, frame: str) -> None:
    _, colour, style, width, *_ = FRAMES[frame]
    ax.axis("on")
    ax.set(xticks=[], yticks=[])
    grey = image.shape[-1] == 1
    ax.imshow(image[..., 0] if grey else image, cmap="gray_r" if grey else None, vmin=0, vmax=255)
    for spine in ax.spines.values():
        spine.set(edgecolor=colour, linestyle=style, linewidth=width)


def growth_plot(path: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """A PNG with a panel for each of a benchmark's growth entries: seconds over the size, and the straight line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(lines), figsize=(2.6 * len(lines), 2.4), squeeze=False)
    for ax, line in zip(axes[0], lines, strict=True):
        sizes = np.asarray(line["sizes"])
        ax.plot(sizes, line["seconds_at_zero"] + line["seconds_per_unit"] * sizes, color="#9e9e9e", linewidth=1)
        ax.plot(sizes, line["curve_s"], "o", color="#1565c0", markersize=4)
        ax.set_xlabel(line["work"].removeprefix("seconds over "), fontsize=8)
        ax.set_xlim(0, None)
        ax.set_ylim(0, 1.15 * max(line["curve_s"]))
        ax.tick_params(labelsize=7)
        ax.locator_params(nbins=5)
        ax.ticklabel_format(axis="x", style="plain")
    axes[0, 0].set_ylabel("seconds a step", fontsize=8)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plain_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, width: int = 0) -> str:
    """Columns aligned by spaces, for a terminal.

    Args:
      header: nothing, for no columns.
      rows: their cells.
      width: above 0, cells are broken at their spaces until a line has at most so many characters: the widest first.
        Words are broken where that is not enough.
    """
    lines = [[str(cell) for cell in row] for row in [header, *rows]] if header else []
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    longest_word = [
        max((len(word) for line in lines for word in line[i].split()), default=0) for i in range(len(header))
    ]
    while width and sum(widths) + 2 * (len(widths) - 1) > width:
        columns = [i for i, w in enumerate(widths) if w > longest_word[i]] or range(len(widths))  # words break last
        widths[max(columns, key=lambda i: widths[i])] -= 1
    broken = [
        [textwrap.wrap(cell, max(w, 1), break_on_hyphens=False) or [""] for cell, w in zip(line, widths, strict=True)]
        for line in lines
    ]
    return "\n".join(
        "  ".join(map(str.ljust, parts, widths)).rstrip()
        for line in broken
        for parts in itertools.zip_longest(*line, fillvalue="")
    )
