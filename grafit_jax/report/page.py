"""The page of one run, or of several on the same images side by side: from embeddings, labels and metrics to HTML."""

import base64
import hashlib
import importlib.resources
from collections.abc import Sequence

import numpy as np

from grafit_jax.data.records import Records
from grafit_jax.report import images, markup, sections
from grafit_jax.report.markup import text
from grafit_jax.report.pictures import FRAMES
from grafit_jax.report.shown import Run, Seen, classes_of
from grafit_jax.retrieval import neighbors

_NEIGHBOURS = 10


def compose(runs: Sequence[Run], test: Records, ids: np.ndarray) -> str:
    """The page, in ASCII.

    Args:
      runs: one, or up to three that are compared; the first one's seed draws the images of the map.
      test: the images that all of them embed, at least two.
      ids: int [N], their rows in the test split.
    """
    k = min(_NEIGHBOURS, len(test) - 1)
    seen = [
        Seen(run, *neighbors.search(run.embedding, run.embedding, k, query_ids=ids, gallery_ids=ids)) for run in runs
    ]
    classes = classes_of(test)
    parts = [
        sections.metrics(runs, test),
        sections.curves(runs),
        images.gallery(seen, test, ids, classes),
        sections.by_class(seen, classes),
        sections.mistakes(seen, classes),
        images.in_a_map(seen, test, ids, classes),
        sections.environment(runs),
    ]
    title = text(f"{', '.join(run.name for run in runs)}: {runs[0].result['config']['data.source']}")
    contents = "".join(f'<li><a href="#{part.name}">{part.heading}</a></li>' for part in parts)
    script = _asset("page.js")
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{_asset("page.css")}{_frames()}</style>
</head>
<body>
<a class="skip" href="#main">to the content</a>
<header><h1>{title}</h1>{sections.headline(runs, classes)}</header>
<nav aria-label="parts of this page"><ul>{contents}</ul></nav>
<main id="main" tabindex="-1">
{"".join(markup.section(*part) for part in parts)}
</main>
<footer>Made by grafit_jax. Everything is in this file.</footer>
<script>{script}</script>
</body>
</html>
"""
    return page.encode("ascii", "xmlcharrefreplace").decode()


def _policy(script: str) -> str:
    """No network, and no script but the page's own, whatever a class is called."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _frames() -> str:
    """The style of every frame, as `pictures.contact_sheet` draws it."""
    return "".join(
        f".{name}>img,.swatch.{name}{{border:{2 * frame.width:g}px {frame.style} {frame.colour}}}"
        for name, frame in FRAMES.items()
        if name != "query"
    )


def _asset(name: str) -> str:
    return (importlib.resources.files("grafit_jax.report") / name).read_text(encoding="ascii")
