"""The page of one run, or of several on the same images side by side: from embeddings, labels and metrics to HTML."""

import base64
import hashlib
import importlib.resources
from collections.abc import Sequence

import numpy as np

from grafit_jax.data.records import Records
from grafit_jax.report import by_class, confusion, curves, embedding_map, environment, gallery, metrics
from grafit_jax.report.markup import text
from grafit_jax.report.pictures import FRAMES
from grafit_jax.report.shown import Run, Shown

_SECTIONS = (metrics, curves, gallery, by_class, confusion, embedding_map, environment)


def compose(runs: Sequence[Run], test: Records, ids: np.ndarray) -> str:
    """The page, in ASCII, of what `Shown` holds."""
    shown = Shown(runs, test, ids)
    sections = [module.section(shown) for module in _SECTIONS]
    title = text(f"{', '.join(run.name for run in runs)}: {runs[0].result['config']['data.source']}")
    contents = "".join(f'<li><a href="#{section.name}">{section.heading}</a></li>' for section in sections)
    script = _asset("page.js")
    # No network, and no script but the page's own, whatever a class is called.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    # As `pictures.contact_sheet` draws the frames.
    frames = "".join(
        f".{name}>img,.swatch.{name}{{border:{2 * frame.width:g}px {frame.style} {frame.colour}}}"
        for name, frame in FRAMES.items()
        if name != "query"
    )
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{_asset("page.css")}{frames}</style>
</head>
<body>
<a class="skip" href="#main">to the content</a>
<header><h1>{title}</h1>{metrics.headline(shown)}</header>
<nav aria-label="parts of this page"><ul>{contents}</ul></nav>
<main id="main" tabindex="-1">
{"".join(section.html() for section in sections)}
</main>
<footer>Made by grafit_jax. Everything is in this file.</footer>
<script>{script}</script>
</body>
</html>
"""
    return page.encode("ascii", "xmlcharrefreplace").decode()


def _asset(name: str) -> str:
    return (importlib.resources.files("grafit_jax.report") / name).read_text(encoding="ascii")
