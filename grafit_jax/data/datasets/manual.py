"""Data sets that TFDS cannot download, written as it would write them, from files in a folder of the user's."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image

from grafit_jax.data.tensorflow import import_tfds
from grafit_jax.errors import UserError, reading, warn


def builder(name: str, base: type, body: dict[str, Any], data_dir: str | None) -> Any:
    """TFDS's builder of the data set `name`: `base` with the attributes and methods of `body`."""
    _, tfds = import_tfds()
    with tfds.core.registered.skip_registration():  # what is prepared is read by its files alone
        # TFDS looks for files of its own beside a builder's module, unless that is in no package.
        cls = type(name.capitalize(), (base,), {"__module__": name} | body)
    return cls(data_dir=os.path.expanduser(data_dir) if data_dir else None, file_format="tfrecord")


def check_folders(folder: pathlib.Path, folders: Sequence[str], files: Sequence[str]) -> None:
    """Raises a UserError unless a folder is there that has `folders` in it."""
    for path in (folder, *(folder / name for name in folders)):
        if not path.is_dir():
            raise UserError(f"{path} is no folder: want {', '.join((*folders, *files))} in --manual_dir.")


def check_image(image: pathlib.Path, listed_in: str) -> None:
    """Raises a UserError for what cannot be read, before the writing rather than in the midst of it."""
    if not os.path.isfile(image):
        raise UserError(f"{image} is missing, and {listed_in} lists it: add the image.")
    with reading(image, "want an image; replace it"):
        PIL.Image.open(image).close()


def write(builder: Any, published: Mapping[str, int]) -> None:
    """Prepares a data set from the files that its builder reads; warns where a split has not its `published` images.

    Raises:
      UserError: it cannot be written.
    """
    tf, tfds = import_tfds()
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f"cannot write {builder.data_dir} ({' '.join(str(error).split())}): take another --data_dir."
        ) from error
    for split, found in num_images(builder).items():
        if found != published[split]:
            warn(f"{builder.name}, split {split}: found {found} images, and the whole data set has {published[split]}.")


def num_images(builder: Any) -> dict[str, int]:
    """split -> its number of images."""
    return {split: info.num_examples for split, info in builder.info.splits.items()}
