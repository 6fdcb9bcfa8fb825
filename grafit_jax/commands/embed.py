"""Writes embeddings of any images, or of a split of a run's data, to a file that evaluate.py and search.py read.

python experiments/embed.py --workdir=runs/photos --images=photos/ --out=gallery.parquet
python experiments/embed.py --model=saved --images a.jpg b.jpg list.csv --out=some.npz
python experiments/embed.py --workdir=runs/grafit --split=test --out=test.npz

`grafit embed` of the installed package is the same command.

--images: image files, folders, or CSV files with the column path and perhaps coarse and fine. The data of the training
are not needed. Embeddings have unit length; --raw writes them as the network gives them.

--split: the images and labels of the training's data set, which must be unchanged.
"""

import pathlib

from absl import flags

import grafit_jax
from grafit_jax import config, model, parallel, restore
from grafit_jax.commands import cli
from grafit_jax.data import sources
from grafit_jax.errors import UserError
from grafit_jax.retrieval import embeddings

_WORKDIR = flags.DEFINE_string("workdir", None, "workdir of a run")
_MODEL = flags.DEFINE_string("model", None, "folder of a saved model, or hf:owner/name, instead of --workdir")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "newest", "with --images: newest, or the step of a checkpoint")
_IMAGES = flags.DEFINE_multi_string("images", [], "image file, folder or CSV; may be repeated")
_SPLIT = flags.DEFINE_enum("split", "test", sources.SPLITS, "split to embed, without --images")
_LAYER = flags.DEFINE_enum(
    "layer", None, config.LAYERS, "layer of the embeddings (default: that of the headline metrics)"
)
_RAW = flags.DEFINE_bool("raw", False, "do not scale the embeddings to unit length")
_DTYPE = flags.DEFINE_enum("dtype", "float32", [*embeddings.DTYPES], "of the embeddings in a .npy file")
_OUT = flags.DEFINE_string("out", None, "output file: .npz, .parquet, or .npy (with a .csv)", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, cli.DATA_DIR)


def main(argv):
    if (_WORKDIR.value is None) == (_MODEL.value is None):
        raise UserError("found both or neither of --workdir=DIR and --model=FOLDER; expected one.")
    embeddings.check_format(pathlib.Path(_OUT.value or ""), _DTYPE.value)
    parallel.warn_of_unseen()
    if _IMAGES.value:
        for name in ("split", "data_dir"):
            if flags.FLAGS[name].present:
                raise UserError(f"found --{name} with --images; expected one of them; remove --{name}.")
        loaded = grafit_jax.load(_WORKDIR.value or _MODEL.value or "", checkpoint=cli.checkpoint(_CHECKPOINT.value))
        gallery = grafit_jax.Gallery.build(
            loaded, _IMAGES.value, layer=_LAYER.value, normalize=not _RAW.value, progress=True
        )
    elif _MODEL.value is not None or flags.FLAGS["checkpoint"].present:
        raise UserError("found no --images; expected the images to embed, such as --images=photos/.")
    else:
        path = pathlib.Path(_WORKDIR.value or "")
        run, state = restore.newest(path, data_dir=_DATA_DIR.value)
        gallery = model.split_gallery(run, state, path, _SPLIT.value, layer=_LAYER.value, normalize=not _RAW.value)
    gallery.save(_OUT.value, dtype=_DTYPE.value)
    print(f"{_OUT.value}: {len(gallery)} embeddings of {gallery.features.embedding.shape[1]} dimensions")


if __name__ == "__main__":
    cli.run(main, rest="images")
