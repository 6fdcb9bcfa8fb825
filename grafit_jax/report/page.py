"""Composes the HTML page of one run, or of several runs on the same test images."""

from collections.abc import Sequence

import numpy as np

from grafit_jax.data.records import Records
from grafit_jax.report import by_class, confusion, curves, embedding_map, environment, gallery, metrics
from grafit_jax.report.markup import document, text
from grafit_jax.report.pictures import FRAMES
from grafit_jax.report.shown import Run, Shown

_SECTIONS = (metrics, curves, gallery, by_class, confusion, embedding_map, environment)


def compose(runs: Sequence[Run], test: Records, ids: np.ndarray) -> str:
    """Returns the page as ASCII HTML; the arguments are those of `Shown`."""
    shown = Shown(runs, test, ids)
    sections = [module.section(shown) for module in _SECTIONS]
    title = text(f"{', '.join(run.name for run in runs)}: {runs[0].result['config']['data.source']}")
    # The frames of `pictures.contact_sheet`.
    frames = "".join(
        f".{name}>img,.swatch.{name}{{border:{2 * frame.width:g}px {frame.style} {frame.colour}}}"
        for name, frame in FRAMES.items()
        if name != "query"
    )
    return document(title, metrics.headline(shown), sections, style=frames)
