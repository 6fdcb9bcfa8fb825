"""The nearest images of a few queries, as a table and, with --out, as a picture.

python experiments/search.py --workdir=runs/grafit --ids=test/3,test/17 --k=10 --out=near.png
python experiments/search.py --workdir=runs/grafit --query=photo.jpg --query=other.png
python experiments/search.py --gallery=test.npz --ids=test/3

A workdir's newest checkpoint embeds the queries, and the gallery too (its test split, or --split) where no file is
given. A gallery on its own is searched by the ids of its rows, each left out of its own neighbours.
"""

import pathlib
from typing import Any

from absl import flags

from grafit_jax import model, restore
from grafit_jax.commands import cli, search
from grafit_jax.data import sources
from grafit_jax.errors import UserError
from grafit_jax.retrieval import embeddings as files

_WORKDIR = flags.DEFINE_string("workdir", None, "a workdir of experiments/train.py")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS's data directory, where it is not the one of the training")
_GALLERY = flags.DEFINE_string("gallery", None, "embeddings of experiments/embed.py")
_SPLIT = flags.DEFINE_enum("split", "test", sources.SPLITS, "the gallery, where it is not given")
_LAYER = flags.DEFINE_enum("layer", "trunk", ("trunk", "projector"), "which embedding")
_QUERY = flags.DEFINE_multi_string("query", [], "an image file; may be given several times")
_IDS = flags.DEFINE_list("ids", [], "ids of images of the gallery, as test/3,test/17")
_K = flags.DEFINE_integer("k", 10, "how many neighbours", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "a PNG of queries and neighbours")


def main(argv):
    if bool(_QUERY.value) == bool(_IDS.value):
        raise UserError("want one of --query=IMAGE and --ids=ID,ID.")
    if _WORKDIR.value is None and (_QUERY.value or _GALLERY.value is None):
        raise UserError("want --workdir=DIR, whose network embeds images, or --gallery=FILE and --ids=ID,ID.")
    if _OUT.value is not None and pathlib.Path(_OUT.value).suffix not in (".png", ".jpg", ".pdf", ".svg"):
        raise UserError(f"--out={_OUT.value}: want a file that ends in .png, .jpg, .pdf or .svg.")
    for name in ("split", "layer"):
        if _GALLERY.value is not None and _IDS.value and flags.FLAGS[name].present:
            raise UserError(f"found --{name} with --gallery, which has its embeddings already: leave it out.")
    run: Any = None
    state: Any = None
    images: Any
    if _WORKDIR.value is not None:
        run, state = restore.newest(pathlib.Path(_WORKDIR.value), data_dir=_DATA_DIR.value)
    if _GALLERY.value is not None:
        gallery = files.load(pathlib.Path(_GALLERY.value))
        if _QUERY.value:
            made_by = model.made_by(run, state, _LAYER.value)
            model.check_alike(_GALLERY.value, gallery.made_by, "the newest checkpoint", made_by)
        images = None if gallery.filename is None else search.FileImages(gallery.filename.tolist())
    else:
        gallery = model.embed(run, state, _SPLIT.value, _LAYER.value)
        images = run.records[_SPLIT.value].image
    if _OUT.value is not None and images is None:
        raise UserError(f"{_GALLERY.value} names no files to draw: leave out --out, or search with --workdir alone.")

    if _IDS.value:
        names, rows = _IDS.value, search.rows_of(gallery, _IDS.value)
        similarity, index = search.nearest(gallery, _K.value, rows=rows)
        queries = [images[row] for row in rows] if _OUT.value is not None else []
    else:
        names, rows = _QUERY.value, None
        queries = [search.read_query(run, pathlib.Path(name)) for name in names]
        embeddings = search.embed_images(run, state, queries, _LAYER.value)
        similarity, index = search.nearest(gallery, _K.value, embeddings=embeddings)
    print(search.table(names, gallery, similarity, index))
    if _OUT.value is not None:
        search.picture(pathlib.Path(_OUT.value), queries, images, gallery, index, rows=rows)
        print(f"picture: {_OUT.value}")


if __name__ == "__main__":
    cli.run(main)
