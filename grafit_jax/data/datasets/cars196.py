"""Stanford Cars as TFDS has it, from files in a folder: what TFDS's own builder would download is gone.

The builder is TFDS's, with its version, label names and features (image, label, bbox, id); only the files come from
elsewhere.
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
# Images and annotations of each split, in the folder.
FILES = {
    "train": ("cars_train", "devkit/cars_train_annos.mat"),
    "test": ("cars_test", "cars_test_annos_withlabels.mat"),
}
META = "devkit/cars_meta.mat"
_WANT = "want that of Stanford Cars in --manual_dir"
_NUM_IMAGES = {"train": 8144, "test": 8041}
# TFDS finds the class and the box by their places.
_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")


def prepare(manual_dir: pathlib.Path, data_dir: str | None = None) -> tuple[pathlib.Path, dict[str, int]]:
    """Writes TFDS's data set cars196 as tfrecord; one that is there already stays as it is.

    Args:
      manual_dir: a folder with cars_train/*.jpg, cars_test/*.jpg, devkit/cars_meta.mat, devkit/cars_train_annos.mat
        and cars_test_annos_withlabels.mat.
      data_dir: where TFDS keeps its data sets; empty for TFDS's own default.

    Returns:
      Its folder, and the number of images in each split. Others than 8,144 and 8,041 are warned of.

    Raises:
      UserError: a file or folder that is missing or cannot be read, or annotations that do not fit.
    """

    def split_generators(self, dl_manager):
        return {
            split: self._generate_examples(split, str(manual_dir / images), str(manual_dir / annotations))
            for split, (images, annotations) in FILES.items()
        }

    _, tfds = import_tfds()
    body = {"_split_generators": split_generators}
    builder = manual.builder("cars196", tfds.builder_cls("cars196"), body, data_dir)
    if not builder.is_prepared():
        _check(manual_dir)
        manual.write(builder, _NUM_IMAGES)
    return pathlib.Path(builder.data_dir), manual.num_images(builder)


def _check(folder: pathlib.Path) -> None:
    """Raises a UserError for what is missing or does not fit, before the writing rather than in the midst of it."""
    folders, files = zip(*FILES.values(), strict=True)
    manual.check_folders(folder, folders, (META, *files))
    num_classes = _read(folder / META, "class_names").size
    if num_classes != NUM_CLASSES:
        raise UserError(f"{folder / META} names {num_classes} classes, want the {NUM_CLASSES} of Stanford Cars.")
    for images, name in FILES.values():
        annotations = _read(folder / name, "annotations")
        if annotations.dtype.names != _FIELDS:
            raise UserError(
                f"{folder / name} has the fields {', '.join(annotations.dtype.names or ()) or 'of no structure'}, want "
                f"{', '.join(_FIELDS)}: take the file with labels."
            )
        with reading(folder / name, _WANT):
            listed = [(int(row["class"]), str(row["fname"])) for row in annotations]
        for number, file in listed:
            if not 1 <= number <= NUM_CLASSES:
                raise UserError(f"{folder / name} has class {number} for {file}, want 1 to {NUM_CLASSES}.")
            manual.check_image(folder / images / file, name)


def _read(path: pathlib.Path, key: str) -> Any:
    """The array `key`, [N], of a Matlab file.

    It is read by a process of its own: SciPy's reader crashes on some damaged files.
    """
    import scipy.io

    with reading(path, _WANT):
        file = io.BytesIO(path.read_bytes())
        spawned = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawned) as pool:
            content = pool.submit(scipy.io.loadmat, file, squeeze_me=True).result()
        if key not in content:
            raise UserError(f"{path} holds no {key}: {_WANT}.")
        return np.atleast_1d(content[key])
