"""Writes the embeddings, ids and labels of a split to a file, which evaluate.py and search.py read.

python experiments/embed.py --workdir=runs/grafit --split=test --out=test.npz
"""

import pathlib

from absl import flags

from grafit_jax import model, restore
from grafit_jax.commands import cli
from grafit_jax.data import sources
from grafit_jax.retrieval import embeddings

_WORKDIR = flags.DEFINE_string("workdir", None, "workdir of a run; the newest checkpoint is used", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", sources.SPLITS, "split to embed")
_LAYER = flags.DEFINE_enum("layer", "trunk", ("trunk", "projector"), "layer of the embeddings")
_OUT = flags.DEFINE_string("out", None, "output file: .npz, .parquet, or .npy (with a .csv)", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, cli.DATA_DIR)


def main(argv):
    run, state = restore.newest(pathlib.Path(_WORKDIR.value), data_dir=_DATA_DIR.value)
    embedded = model.embed(run, state, _SPLIT.value, _LAYER.value)
    embeddings.save(pathlib.Path(_OUT.value), embedded)
    print(f"{_OUT.value}: {len(embedded)} embeddings of {embedded.embedding.shape[1]} dimensions")


if __name__ == "__main__":
    cli.run(main)
