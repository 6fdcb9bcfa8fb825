"""Page section: random queries and their nearest images."""

from collections.abc import Sequence

import numpy as np

from grafit_jax.report import thumbnails
from grafit_jax.report.markup import Section, text
from grafit_jax.report.pictures import FRAMES, queries_of, relation
from grafit_jax.report.shown import Run, Shown

# Queries on the page, and those that it shows at first.
_QUERIES, _AT_FIRST = 24, 12
# Pixels per side of a thumbnail: twice its size on the page, for the enlarged image.
_SIDE = 128


def section(shown: Shown) -> Section:
    """Shows one query of each of up to `_QUERIES` classes, the same queries for each run."""
    queries = queries_of(shown.classes[0].label, _QUERIES)
    rows = np.unique(np.concatenate([queries, *(run.neighbours[1][queries].ravel() for run in shown.runs)]))
    small = thumbnails.thumbnails(shown.test.image, rows, _SIDE)
    image = {row: thumbnails.img(thumbnail) for row, thumbnail in small.items()}
    found: set[str] = set()
    options, articles = "", ""
    for number, query in enumerate(queries):
        sides = ""
        for run in shown.runs:
            kinds = _relations(shown, query, run.neighbours[1][query])
            sides += _side(shown, run, query, kinds, image)
            found.update(kinds)
        heading = text(shown.described(query))
        description = f"query: {heading}, test/{shown.ids[query]}"
        options += f'<option value="{number}">{heading}</option>'
        articles += (
            f'<article class="query" data-number="{number}"><h3>{heading}</h3><div class="sides">'
            f'{image[query]} class="query-image" alt="{description}" title="{description}">{sides}</div></article>'
        )
    legend = "".join(_legend(shown, kind) for kind in FRAMES if kind in found)
    some = f'<option value="some">{_AT_FIRST} queries</option>' if len(queries) > _AT_FIRST else ""
    content = f"""<p>One random query from each of {len(queries)} classes with its nearest test images, nearest
first.</p>
<ul class="legend">{legend}</ul>
<p class="control" hidden><label for="query-choice">Show</label>
<select id="query-choice" data-some="{_AT_FIRST}">{some}<option value="all">all {len(queries)} queries</option>
{options}</select></p>
<div id="queries">{articles}</div>"""
    return Section("gallery", "Nearest neighbours", content)


def _relations(shown: Shown, query: int, near: np.ndarray) -> list[str]:
    """Returns the frame of each neighbour. Without fine labels, a hit at the known level is "coarse"."""
    labels = [level.label for level in shown.classes]
    fine, coarse, *_ = [None, *labels] if shown.test.label is None else [*labels, None]
    return [relation(fine, coarse, query, row) for row in near]


def _side(shown: Shown, run: Run, query: int, kinds: Sequence[str], image: dict[int, str]) -> str:
    """Shows the neighbours of a query in one run."""
    fine, items = shown.classes[0], ""
    cosines, near = (found[query] for found in run.neighbours)
    for rank, (row, cosine, kind) in enumerate(zip(near, cosines, kinds, strict=True), 1):
        means = f"{_meaning(shown, kind)}, cosine {cosine:.3f}, test/{shown.ids[row]}"
        description = text(f"{rank}: {shown.described(row)}, {means}")
        symbol = f'<span aria-hidden="true">{FRAMES[kind].symbol}</span>'
        name = f'<small aria-hidden="true">{text(fine.of(row))}</small>'
        items += f'<li class="{kind}">{image[row]} alt="{description}" title="{description}">{symbol}{name}</li>'
    name = f"{text(run.name)}: " if len(shown.runs) > 1 else ""
    right = kinds.count("coarse" if shown.test.label is None else "fine")
    caption = f"{name}{right} of {len(kinds)} in the same {text(fine.level)} class"
    return f'<figure><figcaption>{caption}</figcaption><ol class="near">{items}</ol></figure>'


def _meaning(shown: Shown, kind: str) -> str:
    single_level = kind == "coarse" and len(shown.classes) == 1
    return f"same {shown.classes[0].level} class" if single_level else FRAMES[kind].meaning


def _legend(shown: Shown, kind: str) -> str:
    frame = FRAMES[kind]
    swatch = f'<span class="swatch {kind}" aria-hidden="true">{frame.symbol}</span>'
    return f"<li>{swatch}{frame.hue}, {frame.style}: {text(_meaning(shown, kind))}</li>"
