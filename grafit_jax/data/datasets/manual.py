"""Writes TFDS data sets from local files, for data sets that TFDS cannot download."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image

from grafit_jax.data.tensorflow import import_tfds
from grafit_jax.errors import UserError, reading, warn


def builder(name: str, base: type, body: dict[str, Any], data_dir: str | None) -> Any:
    """Returns a TFDS builder of the data set `name`: `base` with the attributes and methods of `body`."""
    _, tfds = import_tfds()
    with tfds.core.registered.skip_registration():  # TFDS reads a prepared data set without its builder
        # A module name outside any package: otherwise TFDS looks for metadata files next to the builder's module.
        cls = type(name.capitalize(), (base,), {"__module__": name} | body)
    return cls(data_dir=os.path.expanduser(data_dir) if data_dir else None, file_format="tfrecord")


def check_folders(folder: pathlib.Path, folders: Sequence[str], files: Sequence[str]) -> None:
    """Raises a UserError unless `folder` and its subfolders `folders` exist; `files` are named in the message only."""
    for path in (folder, *(folder / name for name in folders)):
        if not path.is_dir():
            raise UserError(f"{path}: found no such folder; expected {', '.join((*folders, *files))} in --manual_dir.")


def check_image(image: pathlib.Path, listed_in: str) -> None:
    """Raises a UserError for a missing or unreadable image before anything is written."""
    if not os.path.isfile(image):
        raise UserError(f"{image}: found no such image, but {listed_in} lists it; add the image.")
    with reading(image, "expected an image; replace it"):
        PIL.Image.open(image).close()


def write(builder: Any) -> None:
    """Prepares the data set of a builder.

    Raises:
      UserError: the data set cannot be written.
    """
    tf, tfds = import_tfds()
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f"cannot write {builder.data_dir} ({' '.join(str(error).split())}); use another --data_dir."
        ) from error


def num_images(builder: Any, published: Mapping[str, int]) -> dict[str, int]:
    """Returns the number of images of each split; prints a warning if one is not that of `published`."""
    numbers = {split: info.num_examples for split, info in builder.info.splits.items()}
    for split, found in numbers.items():
        if found != published[split]:
            warn(
                f"{builder.name}, split {split}: found {found} images; expected {published[split]}; remove "
                f"{builder.data_dir} to prepare it again."
            )
    return numbers
