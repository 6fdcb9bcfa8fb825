"""A page to search a gallery with, served by Gradio (the extra `app`)."""

import atexit
import csv
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grafit_jax.errors import UserError, install
from grafit_jax.gallery import Gallery, Hit
from grafit_jax.report import hits

# Largest number of neighbours that the page offers.
_MOST = 50
_CSS = """
#near .grid-container { grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)) !important; }
#near .caption-label { white-space: normal; max-width: 100%; left: 0; right: 0; }
"""
# Options of `gradio.Blocks.launch`: nothing is loaded from other servers or sent to them.
LAUNCH: Mapping[str, Any] = {"quiet": True, "share": False, "footer_links": [], "run_history": False, "css": _CSS}
_COLUMNS = ("path", "split", "coarse", "similarity")


def build(galleries: Mapping[str, Gallery], *, k: int = 12) -> Any:
    """Returns the page, a `gradio.Blocks`.

    A photo finds its neighbours. Those that are ticked get the label that is typed, and all of them are a CSV to train
    on (`csv:`).

    Args:
      galleries: layer -> gallery of image files, with its model.
      k: number of neighbours at first.

    Raises:
      UserError: gradio is not installed.
    """
    gradio = _gradio()
    layers = [*galleries]
    most = min(_MOST, *map(len, galleries.values()))
    folder = tempfile.mkdtemp(prefix="grafit_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def search(photo: str | None, number: float, layer: str) -> list[Any]:
        found = []
        if photo is not None:
            try:
                if not os.path.isfile(photo) or photo.lower().endswith(".csv"):  # whose files would be read
                    raise UserError(f"{photo}: found a folder or a CSV; expected an image.")
                (near,) = galleries[layer].search(photo, int(number))
                found = [(hit, _picture(gradio, hit)) for hit in near]
            except UserError as error:
                gradio.Warning(str(error).replace(photo, os.path.basename(photo)))
        pictures = [(image, f"{rank}. {_title(hit)}") for rank, (hit, image) in enumerate(found, start=1)]
        near = [hit for hit, _ in found]
        choices = [
            (f"{rank}. {_title(hit)}, {os.path.basename(hit.filename)}", rank - 1)
            for rank, hit in enumerate(near, start=1)
        ]
        name = near[0].label if near else ""
        return [pictures, gradio.CheckboxGroup(choices=choices, value=[]), name, near]

    def add(ticked: Sequence[int], name: str, near: Sequence[Hit], labels: Mapping[str, Any]) -> list[Any]:
        if not ticked or not name.strip():
            gradio.Warning("Tick at least one neighbour, and name their class.")
            return [gradio.skip()] * 3
        more = {os.path.abspath(near[i].filename): (name.strip(), near[i].similarity) for i in ticked}
        return _labelled(gradio, {**labels, **more}, folder)

    # Uploads and pictures are deleted after a day.
    with gradio.Blocks(title="grafit", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        near, labels = gradio.State([]), gradio.State({})
        number = f"{len(galleries[layers[0]]):,}"
        gradio.Markdown(f"# Search by a photo\nin {number} images")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                photo = gradio.Image(label="Photo", sources=["upload", "clipboard"], elem_id="photo")
                photo.preprocess = lambda file: file and file.path  # as it is, also if it is no image
                count = gradio.Slider(1, most, min(k, most), step=1, label="Neighbours", elem_id="count")
                layer = gradio.Radio(layers, value=layers[0], label="Layer", visible=len(layers) > 1, elem_id="layer")
            with gradio.Column(scale=3, min_width=280):
                pictures = gradio.Gallery(
                    label="Nearest images", columns=6, object_fit="contain", height="auto", interactive=False,
                    elem_id="near",
                )  # fmt: skip
        ticked = gradio.CheckboxGroup(label="Which ones are right?", choices=[], elem_id="ticked")
        with gradio.Row():
            name = gradio.Textbox(label="Their class", elem_id="name")
            with gradio.Column(min_width=160):
                button = gradio.Button("Add to the labels", elem_id="add")
                download = gradio.DownloadButton("Download 0 labels (CSV)", interactive=False, elem_id="download")
        for change in (photo.change, count.release, layer.change):
            change(search, [photo, count, layer], [pictures, ticked, name, near])
        button.click(add, [ticked, name, near, labels], [labels, download, ticked])
    return page


def _picture(gradio: Any, hit: Hit) -> np.ndarray:
    """Returns the image of a neighbour; a grey one, with a warning, if its file cannot be read."""
    try:
        return hits.read(hit.filename)
    except UserError:
        gradio.Warning(f"found no readable image {os.path.basename(hit.filename)}; expected it where the gallery says.")
        return hits.MISSING


def _title(hit: Hit) -> str:
    return f"{hit.label or os.path.basename(hit.filename)} {hit.similarity:.3f}"


def _labelled(gradio: Any, labels: Mapping[str, tuple[str, float]], folder: str) -> list[Any]:
    """Writes the CSV below `folder`; returns the labels, the button that downloads it, and no ticks."""
    path = pathlib.Path(tempfile.mkdtemp(dir=folder)) / "labels.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows([file_, "train", name, f"{similarity:.4f}"] for file_, (name, similarity) in labels.items())
    word = "label" if len(labels) == 1 else "labels"
    button = gradio.DownloadButton(f"Download {len(labels)} {word} (CSV)", value=str(path), interactive=True)
    return [labels, button, []]


def _gradio() -> Any:
    try:
        import gradio
    except ImportError:
        raise UserError(f"found no gradio; use `{install('app')}`.") from None
    return gradio
