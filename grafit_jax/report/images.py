"""The parts of a page that show images: queries with their neighbours, and the map."""

from collections.abc import Mapping, Sequence

import numpy as np

from grafit_jax.data.records import Records
from grafit_jax.report import analysis, markup, thumbnails
from grafit_jax.report.markup import text
from grafit_jax.report.pictures import FRAMES, queries_of, relation
from grafit_jax.report.shown import Classes, Part, Seen, described

_QUERIES = 12
# The pixels of a side, and how many images a map has.
_QUERY_SIDE = 64
_POINT_SIDE = 48
_POINTS = 1000


def gallery(seen: Sequence[Seen], test: Records, ids: np.ndarray, classes: Sequence[Classes]) -> Part:
    """Queries with the images nearest to them, the same queries for every run."""
    queries = queries_of(classes[0].label, _QUERIES)
    shown = np.unique(np.concatenate([queries, *(s.near[queries].ravel() for s in seen)]))
    small = thumbnails.thumbnails(test.image, shown, _QUERY_SIDE)
    image = {row: f'<img src="{thumbnails.data_uri(thumbnail)}"' for row, thumbnail in small.items()}
    of_query = {query: [_relations(s.near[query], query, test, classes) for s in seen] for query in queries}

    def sides(query: int) -> str:
        figures = ""
        for s, kinds in zip(seen, of_query[query], strict=True):
            items = ""
            for rank, (row, cosine, kind) in enumerate(zip(s.near[query], s.similarity[query], kinds, strict=True), 1):
                means = _meaning(kind, classes)
                said = text(f"{rank}: {described(classes, row)}, {means}, cosine {cosine:.3f}, test/{ids[row]}")
                symbol = f'<span aria-hidden="true">{FRAMES[kind].symbol}</span>'
                seen_name = f'<small aria-hidden="true">{text(classes[0].of(row))}</small>'
                items += f'<li class="{kind}">{image[row]} alt="{said}" title="{said}">{symbol}{seen_name}</li>'
            name = f"{text(s.run.name)}: " if len(seen) > 1 else ""
            right = kinds.count("coarse" if test.label is None else "fine")
            caption = f"{name}{right} of {len(kinds)} of the same {text(classes[0].level)} class"
            figures += f'<figure><figcaption>{caption}</figcaption><ol class="near">{items}</ol></figure>'
        return figures

    options, articles = "", ""
    for number, query in enumerate(queries):
        heading = text(described(classes, query))
        said = f"query: {heading}, test/{ids[query]}"
        options += f'<option value="{number}">{heading}</option>'
        articles += (
            f'<article class="query" data-number="{number}"><h3>{heading}</h3><div class="sides">'
            f'{image[query]} class="asked" alt="{said}" title="{said}">{sides(query)}</div></article>'
        )
    found = {kind for of_runs in of_query.values() for kinds in of_runs for kind in kinds}
    content = f"""<p>A query of each of {len(queries)} classes, drawn by chance and not by what comes out, and the test
images nearest to it, nearest first.</p>
<ul class="legend">{_legend([kind for kind in FRAMES if kind in found], classes)}</ul>
<p class="control" hidden><label for="query-choice">Show</label> <select id="query-choice">
<option value="">all {len(queries)} queries</option>{options}</select></p>
<div id="queries">{articles}</div>"""
    return Part("gallery", "Nearest images", content)


def _relations(near: np.ndarray, query: int, test: Records, classes: Sequence[Classes]) -> list[str]:
    """The frame of each of a query's neighbours. Without fine labels nothing is more right than the class known."""
    if test.label is None:
        return [relation(None, classes[0].label, query, row) for row in near]
    coarse = classes[1].label if len(classes) > 1 else None
    return [relation(classes[0].label, coarse, query, row) for row in near]


def _meaning(kind: str, classes: Sequence[Classes]) -> str:
    return f"same {classes[0].level} class" if kind == "coarse" and len(classes) == 1 else FRAMES[kind].meaning


def _legend(kinds: Sequence[str], classes: Sequence[Classes]) -> str:
    items = ""
    for kind in kinds:
        frame, means = FRAMES[kind], text(_meaning(kind, classes))
        swatch = f'<span class="swatch {kind}" aria-hidden="true">{frame.symbol}</span>'
        items += f"<li>{swatch}{frame.hue}, {frame.style}: {means}</li>"
    return items


def in_a_map(seen: Sequence[Seen], test: Records, ids: np.ndarray, classes: Sequence[Classes]) -> Part:
    """The embeddings in two dimensions, with an image at every point."""
    rows = analysis.sample(len(test), _POINTS, seen[0].run.result["seed"])
    small = thumbnails.thumbnails(test.image, rows, _POINT_SIDE)
    sheet, columns = thumbnails.sheet([small[row] for row in rows.tolist()])
    group, fine = classes[-1], classes[0]
    groups, group_of = np.unique(group.label[rows], return_inverse=True)
    names, name_of = np.unique(fine.label[rows], return_inverse=True)
    content = {
        "maps": [_map(s, rows) for s in seen],
        "sheet": sheet,
        "columns": columns,
        "id": ids[rows].tolist(),
        "group": group_of.tolist(),
        "groups": [group.names[label] for label in groups],
        "class": name_of.tolist(),
        "classes": [fine.names[label] for label in names],
        "twoLevels": len(classes) > 1,
    }
    some = f"{len(rows):,} of {len(test):,} test images, drawn by the seed,"
    options = "".join(f'<option value="{i}">{text(group.names[label])}</option>' for i, label in enumerate(groups))
    words = f"""<p>{some if len(rows) < len(test) else "All test images"} in the two directions along which their
embeddings differ most (principal components). Point at an image, tap it, or go from one to the next by the arrow
keys.</p>
<p class="control" hidden><label for="map-choice">Stress</label> <select id="map-choice">
<option value="">all classes of level {text(group.level)}</option>{options}</select></p>
<div id="maps"></div><noscript><p>The map needs JavaScript.</p></noscript>"""
    return Part("map", "Map", words + markup.data("map-data", content))


def _map(seen: Seen, rows: np.ndarray) -> Mapping[str, object]:
    """The places of some images: whole numbers up to 1000."""
    points, shares = analysis.plane(seen.run.embedding[rows])
    scale = 1000 / (np.abs(points).max() or 1.0)
    return {
        "name": seen.run.name,
        "layer": seen.run.layer,
        "shares": [round(100 * share, 1) for share in shares.tolist()],
        "points": np.rint(points * scale).astype(int).tolist(),
    }
