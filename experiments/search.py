"""Prints the nearest images of some queries as a table and, with --out, draws them.

python experiments/search.py --workdir=runs/grafit --ids=test/3,test/17 --k=10 --out=near.png
python experiments/search.py --workdir=runs/grafit --query=photo.jpg --query=other.png
python experiments/search.py --gallery=test.npz --ids=test/3

--workdir: its newest checkpoint embeds the queries and, without --gallery, the split --split.
--gallery alone: the queries are rows of the gallery, given by --ids, and each is excluded from its own neighbours.
"""

import pathlib
from typing import Any

from absl import flags

from grafit_jax import model, restore
from grafit_jax.commands import cli, search
from grafit_jax.data import sources
from grafit_jax.errors import UserError
from grafit_jax.retrieval import embeddings as files

_WORKDIR = flags.DEFINE_string("workdir", None, "workdir of a run")
_DATA_DIR = flags.DEFINE_string("data_dir", None, cli.DATA_DIR)
_GALLERY = flags.DEFINE_string("gallery", None, "file of embeddings, written by experiments/embed.py")
_SPLIT = flags.DEFINE_enum("split", "test", sources.SPLITS, "split that is the gallery, without --gallery")
_LAYER = flags.DEFINE_enum("layer", "trunk", ("trunk", "projector"), "layer of the embeddings")
_QUERY = flags.DEFINE_multi_string("query", [], "image file; may be repeated")
_IDS = flags.DEFINE_list("ids", [], "ids of gallery images, as test/3,test/17")
_K = flags.DEFINE_integer("k", 10, "number of neighbours", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "file to draw queries and neighbours in: .png, .jpg, .pdf or .svg")


def main(argv):
    if bool(_QUERY.value) == bool(_IDS.value):
        raise UserError("found both or neither of --query=IMAGE and --ids=ID,ID; expected one.")
    if _WORKDIR.value is None and (_QUERY.value or _GALLERY.value is None):
        raise UserError(
            "found no --workdir; expected --workdir=DIR, which embeds --query; or --gallery=FILE and --ids=ID,ID."
        )
    if _OUT.value is not None and pathlib.Path(_OUT.value).suffix not in (".png", ".jpg", ".pdf", ".svg"):
        raise UserError(f"found --out={_OUT.value}; expected a file that ends in .png, .jpg, .pdf or .svg.")
    for name in ("split", "layer"):
        if _GALLERY.value is not None and _IDS.value and flags.FLAGS[name].present:
            raise UserError(f"found --{name} with --gallery, which is embedded already; remove --{name}.")
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
        raise UserError(f"{_GALLERY.value}: found no file names to draw; remove --out, or use only --workdir.")

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
