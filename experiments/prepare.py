"""Prepares a data set that TFDS can no longer download, from files in a folder.

python experiments/prepare.py --dataset=cars196 --manual_dir=DIR [--data_dir=DIR]

cars196: the folder holds cars_train/*.jpg, cars_test/*.jpg, devkit/cars_meta.mat, devkit/cars_train_annos.mat and
cars_test_annos_withlabels.mat. Then --config.data.source=tfds:cars196 finds it.
"""

import pathlib

from absl import flags

from grafit_jax import cli
from grafit_jax.data import cars196

_DATASET = flags.DEFINE_enum("dataset", None, ["cars196"], "which one", required=True)
_MANUAL_DIR = flags.DEFINE_string("manual_dir", None, "the folder with its files", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS's data directory (default: TFDS's own)")


def main(argv):
    folder, images = cars196.prepare(pathlib.Path(_MANUAL_DIR.value).expanduser(), _DATA_DIR.value)
    print(f"{folder}: {images['train']} training and {images['test']} test images of {_DATASET.value}")


if __name__ == "__main__":
    cli.run(main)
