"""Prints the nearest images of some queries as a table and, with --out, draws them.

python experiments/search.py --gallery=photos.parquet --query=a.jpg b.jpg new_photos/ --out=near.png
python experiments/search.py --gallery=photos.parquet --ids=apple_3.jpg,test/17
python experiments/search.py --workdir=runs/grafit --ids=test/3 --out=near.png

`grafit search` of the installed package is the same command.

--query: image files, folders or CSV files. The model that made the gallery embeds them; --workdir or --model say where
it is now, if it has moved.

--ids: images of the gallery by id, path or file name; each is excluded from its own neighbours.

Without --gallery, the gallery is the split --split of the data of --workdir.
"""

import pathlib
from typing import Any

import numpy as np
from absl import flags

import grafit_jax
from grafit_jax import config, model, parallel, restore
from grafit_jax.commands import cli, models
from grafit_jax.data import sources
from grafit_jax.data.readers import photos
from grafit_jax.errors import UserError, warn
from grafit_jax.report import hits

_WORKDIR = flags.DEFINE_string("workdir", None, "workdir of a run (default: the model that made --gallery)")
_MODEL = flags.DEFINE_string("model", None, "folder of a saved model, or hf:owner/name, instead of --workdir")
_DATA_DIR = flags.DEFINE_string("data_dir", None, cli.DATA_DIR)
_GALLERY = flags.DEFINE_string("gallery", None, "file of embeddings, written by experiments/embed.py")
_SPLIT = flags.DEFINE_enum("split", "test", sources.SPLITS, "split that is the gallery, without --gallery")
_LAYER = flags.DEFINE_enum(
    "layer", None, config.LAYERS, "layer of the embeddings (default: that of the headline metrics), without --gallery"
)
_QUERY = flags.DEFINE_multi_string("query", [], "image file, folder or CSV; may be repeated")
_IDS = flags.DEFINE_list("ids", [], "images of the gallery by id or file name, as test/3,apple_17.jpg")
_K = flags.DEFINE_integer("k", 10, "number of neighbours", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "file to draw queries and neighbours in: .png, .jpg, .pdf or .svg")
# Largest number of queries in a picture.
_MOST = 50


def main(argv):
    _check_flags()
    parallel.warn_of_unseen()
    images: Any = None
    if _GALLERY.value is None:
        path = pathlib.Path(_WORKDIR.value or "")
        run, state = restore.newest(path, data_dir=_DATA_DIR.value)
        gallery = model.split_gallery(run, state, path, _SPLIT.value, layer=_LAYER.value)
        images = run.records[_SPLIT.value].image
    else:
        gallery = grafit_jax.Gallery.load(_GALLERY.value)
    files = gallery.features.filename
    if _OUT.value is not None and files is None and images is None:
        raise UserError(f"{_GALLERY.value}: found no file names to draw; remove --out.")

    def image_of(row: int):
        if files is not None and not str(files[row]):  # embedded from memory
            return np.full((8, 8, 3), 255, np.uint8)
        return hits.read(images[row] if files is None else str(files[row]))

    rows: Any = None
    if _IDS.value:
        rows = gallery.rows(_IDS.value)
        names, found = [str(gallery.features.id[row]) for row in rows], gallery.search_ids(_IDS.value, _K.value)
    else:
        if gallery.model is None:
            embedder = models.of_gallery(gallery, _WORKDIR.value or _MODEL.value, str(_GALLERY.value))
            gallery = grafit_jax.Gallery(gallery.features, embedder)
        listed = [*photos.each(_QUERY.value)]
        names, found = [photo.id for photo in listed], gallery.search([photo.image for photo in listed], _K.value)
    print(hits.table(names, found, gallery))
    if _OUT.value is not None:
        if len(names) > _MOST:
            warn(f"--out: found {len(names)} queries; drew the first {_MOST}")
        drawn = (
            [image_of(row) for row in rows[:_MOST]]
            if rows is not None
            else [hits.read(p.image) for p in listed[:_MOST]]
        )
        queries = [*zip(names, drawn, strict=False)]
        hits.picture(pathlib.Path(_OUT.value), queries, found[:_MOST], gallery, image_of, rows)
        print(f"picture: {_OUT.value}")


def _check_flags() -> None:
    if bool(_QUERY.value) == bool(_IDS.value):
        raise UserError("found both or neither of --query=IMAGE and --ids=ID,ID; expected one.")
    models.given(_WORKDIR.value, _MODEL.value)
    if _GALLERY.value is None and _WORKDIR.value is None:
        raise UserError(
            "found no --gallery; expected --gallery=FILE, written by experiments/embed.py, or --workdir=DIR."
        )
    if _OUT.value is not None and pathlib.Path(_OUT.value).suffix not in (".png", ".jpg", ".pdf", ".svg"):
        raise UserError(f"found --out={_OUT.value}; expected a file that ends in .png, .jpg, .pdf or .svg.")
    for name in ("split", "layer", "data_dir"):
        if _GALLERY.value is not None and flags.FLAGS[name].present:
            raise UserError(f"found --{name} with --gallery, which is embedded already; remove --{name}.")


if __name__ == "__main__":
    cli.run(main, rest="query")
