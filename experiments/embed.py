"""Writes the embeddings of a split with ids and labels, for experiments/evaluate.py, search.py and anything else.

python experiments/embed.py --workdir=runs/grafit --split=test --out=test.npz
"""

import pathlib

from absl import flags

from grafit_jax import model, restore
from grafit_jax.commands import cli
from grafit_jax.data import sources
from grafit_jax.retrieval import embeddings

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "a workdir of experiments/train.py; its newest checkpoint", required=True
)
_SPLIT = flags.DEFINE_enum("split", "test", sources.SPLITS, "which images")
_LAYER = flags.DEFINE_enum("layer", "trunk", ("trunk", "projector"), "which embedding")
_OUT = flags.DEFINE_string("out", None, "the file: .npz, .parquet, or .npy (with a .csv)", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS's data directory, where it is not the one of the training")


def main(argv):
    run, state = restore.newest(pathlib.Path(_WORKDIR.value), data_dir=_DATA_DIR.value)
    embedded = model.embed(run, state, _SPLIT.value, _LAYER.value)
    embeddings.save(pathlib.Path(_OUT.value), embedded)
    print(f"{_OUT.value}: {len(embedded)} embeddings of {embedded.embedding.shape[1]} dimensions")


if __name__ == "__main__":
    cli.run(main)
