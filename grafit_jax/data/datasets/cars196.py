"""Prepares TFDS's cars196 (Stanford Cars) from local files, because the URLs in TFDS's builder are dead.

The builder is TFDS's own, with its version, label names and features (image, label, bbox, id).
"""

import concurrent.futures
import io
import multiprocessing
import pathlib
from typing import Any

import numpy as np

from grafit_jax.data.datasets import manual
from grafit_jax.data.tensorflow import import_tfds
from grafit_jax.errors import UserError, reading

NUM_CLASSES = 196
# The image folder and the annotations of each split.
FILES = {
    "train": ("cars_train", "devkit/cars_train_annos.mat"),
    "test": ("cars_test", "cars_test_annos_withlabels.mat"),
}
META = "devkit/cars_meta.mat"
_EXPECTED = "expected that of Stanford Cars in --manual_dir"
_NUM_IMAGES = {"train": 8144, "test": 8041}
# TFDS reads the class and the box by position.
_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")


def prepare(manual_dir: pathlib.Path, data_dir: str | None = None) -> tuple[pathlib.Path, dict[str, int]]:
    """Writes TFDS's cars196 as tfrecord, unless it is prepared; warns unless it has 8,144 and 8,041 images.

    Args:
      manual_dir: a folder with cars_train/*.jpg, cars_test/*.jpg, devkit/cars_meta.mat, devkit/cars_train_annos.mat
        and cars_test_annos_withlabels.mat.
      data_dir: TFDS's data directory; empty for TFDS's default.

    Returns:
      The folder of the data set, and the number of images in each split.

    Raises:
      UserError: a file or folder is missing or unreadable, or the annotations are invalid.
    """

    def split_generators(self, dl_manager):
        return {
            split: self._generate_examples(split, str(manual_dir / images), str(manual_dir / annotations))
            for split, (images, annotations) in FILES.items()
        }

    _, tfds = import_tfds("cars196")
    body = {"_split_generators": split_generators}
    builder = manual.builder("cars196", tfds.builder_cls("cars196"), body, data_dir)
    if not builder.is_prepared():
        _check(manual_dir)
        manual.write(builder)
    return pathlib.Path(builder.data_dir), manual.num_images(builder, _NUM_IMAGES)


def _check(folder: pathlib.Path) -> None:
    """Raises a UserError for missing or invalid files before anything is written."""
    folders, files = zip(*FILES.values(), strict=True)
    manual.check_folders(folder, folders, (META, *files))
    num_classes = _read(folder / META, "class_names").size
    if num_classes != NUM_CLASSES:
        raise UserError(f"{folder / META}: found {num_classes} classes; expected the {NUM_CLASSES} of Stanford Cars.")
    for images, name in FILES.values():
        annotations = _read(folder / name, "annotations")
        if annotations.dtype.names != _FIELDS:
            raise UserError(
                f"{folder / name}: found {', '.join(annotations.dtype.names or ()) or 'no fields'}; expected "
                f"the fields {', '.join(_FIELDS)}; use the file with labels."
            )
        with reading(folder / name, _EXPECTED):
            listed = [(int(row["class"]), str(row["fname"])) for row in annotations]
        for number, file in listed:
            if not 1 <= number <= NUM_CLASSES:
                raise UserError(f"{folder / name}: found class {number} for {file}; expected 1 to {NUM_CLASSES}.")
            manual.check_image(folder / images / file, name)


def _read(path: pathlib.Path, key: str) -> Any:
    """Returns the array `key`, [N], of a Matlab file.

    Reads it in a separate process, because SciPy's reader crashes on some damaged files.
    """
    import scipy.io

    with reading(path, _EXPECTED):
        file = io.BytesIO(path.read_bytes())
        spawned = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawned) as pool:
            content = pool.submit(scipy.io.loadmat, file, squeeze_me=True).result()
        if key not in content:
            raise UserError(f"{path}: found no {key}; {_EXPECTED}.")
        return np.atleast_1d(content[key])
