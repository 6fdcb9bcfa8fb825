"""Prepares a data set from files in a folder, where TFDS cannot download it.

python experiments/prepare.py --dataset=cars196 --manual_dir=DIR [--data_dir=DIR]

Train on it with --config.data.source=tfds:NAME. The folder must contain, for
  cars196: cars_train/*.jpg, cars_test/*.jpg, devkit/cars_meta.mat, devkit/cars_train_annos.mat and
    cars_test_annos_withlabels.mat;
  grocery: a clone of https://github.com/marcusklasson/GroceryStoreDataset, whose photos are scaled to 176 px;
  inaturalist2019: train_val2019/, train2019.json, val2019.json and categories.json (with real names).
"""

import pathlib

from absl import flags

from grafit_jax.commands import cli
from grafit_jax.data.datasets import cars196, grocery, inaturalist2019

_DATASETS = {"cars196": cars196.prepare, "grocery": grocery.prepare, "inaturalist2019": inaturalist2019.prepare}
_DATASET = flags.DEFINE_enum("dataset", None, sorted(_DATASETS), "data set to prepare", required=True)
_MANUAL_DIR = flags.DEFINE_string("manual_dir", None, "folder with the downloaded files", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS's data directory (default: TFDS's own)")


def main(argv):
    prepare = _DATASETS[_DATASET.value]
    folder, images = prepare(pathlib.Path(_MANUAL_DIR.value).expanduser(), _DATA_DIR.value)
    print(f"{folder}: {images['train']} training and {images['test']} test images of {_DATASET.value}")


if __name__ == "__main__":
    cli.run(main)
