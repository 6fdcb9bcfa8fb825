"""Proposes finer classes: clusters within each known class, as an HTML page and a CSV to correct and train on.

python experiments/discover.py --gallery=photos.parquet --out=discovered.html
python experiments/discover.py --gallery=photos.parquet --within=apple --k=5
python experiments/discover.py --model=saved --gallery=photos/

`grafit discover` of the installed package is the same command.

--gallery: a file of embeddings of image files, written by embed.py; or, with --model or --workdir, the images: a file,
a folder or a CSV. Its coarse classes are clustered one by one, a gallery without classes as a whole.

The page shows a row for each cluster, with the images nearest to its centre first, its size and, where finer classes
are known, its purity. The CSV beside it, of the same name, holds the proposed classes.
"""

import os
import pathlib

import numpy as np
from absl import flags

import grafit_jax
from grafit_jax import config, parallel
from grafit_jax.commands import cli, models
from grafit_jax.errors import UserError, warn, writing
from grafit_jax.report import discovered, hits
from grafit_jax.runs import workdir

_WORKDIR = flags.DEFINE_string("workdir", None, "workdir of a run, whose model embeds the images of --gallery")
_MODEL = flags.DEFINE_string("model", None, "folder of a saved model, or hf:owner/name, instead of --workdir")
_GALLERY = flags.DEFINE_string("gallery", None, "file of embeddings; or images, with a model", required=True)
_LAYER = flags.DEFINE_enum(
    "layer", None, config.LAYERS, "layer of the embeddings (default: that of the headline metrics), with a model"
)
_WITHIN = flags.DEFINE_string("within", None, "name of one class, to cluster it only")
_K = flags.DEFINE_integer("k", None, "clusters of each class (default: by the mean silhouette)", lower_bound=1)
_MOST = flags.DEFINE_integer("most", 10, "largest number of clusters that is tried, without --k", lower_bound=2)
_OUT = flags.DEFINE_string("out", "discovered.html", "page to write; the CSV lies beside it")


def main(argv):
    page = pathlib.Path(_OUT.value)
    if page.suffix != ".html":
        raise UserError(f"found --out={page}; expected a file that ends in .html.")
    if _K.value is not None and flags.FLAGS["most"].present:
        raise UserError("found --k and --most; expected one of them.")
    labels = page.with_suffix(".csv")
    if labels.exists():
        raise UserError(f"found {labels}, which may hold corrected labels; use another --out, or move it.")
    parallel.warn_of_unseen()
    gallery = _gallery()
    files = models.files(gallery, _GALLERY.value)
    groups = gallery.discover(within=_WITHIN.value, k=_K.value, most=_MOST.value)
    print(discovered.plain(groups))
    print(discovered.summary(groups))
    discovered.write_labels(labels, groups, files)
    print(f"labels: {labels}")
    ids = gallery.features.id.astype(str).tolist()
    lost: list[str] = []

    def image_of(row: int) -> np.ndarray:
        try:
            return hits.read(files[row])
        except UserError as error:
            lost.append(str(error))
            return hits.MISSING

    text = discovered.page(groups, ids, image_of)
    if lost:
        warn(f"{page}: {len(lost)} images are grey: {lost[0]}")
    with writing(page):
        workdir.write(page, text)
    print(f"page: {page}")


def _gallery() -> grafit_jax.Gallery:
    where = models.given(_WORKDIR.value, _MODEL.value)
    if where is not None:
        return grafit_jax.Gallery.build(grafit_jax.load(where), _GALLERY.value, layer=_LAYER.value, progress=True)
    if flags.FLAGS["layer"].present:
        raise UserError("found --layer without a model; expected --workdir or --model; remove --layer.")
    if os.path.isdir(_GALLERY.value):
        raise UserError(f"{_GALLERY.value}: found a folder; expected a file of embeddings; add --model or --workdir.")
    return grafit_jax.Gallery.load(_GALLERY.value)


if __name__ == "__main__":
    cli.run(main)
