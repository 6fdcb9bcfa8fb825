"""Writes TFDS data sets from local files, for data sets that TFDS cannot download."""

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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


def photo_builder(
    name: str,
    classes: Mapping[str, Sequence[str]],
    examples: Mapping[str, Callable[[], Iterator[tuple[str, dict[str, Any]]]]],
    *,
    homepage: str,
    data_dir: str | None,
) -> Any:
    """Returns a TFDS builder of JPEG photos with the features id, image and a label for each level.

    Args:
      name: the name of the data set.
      classes: label feature -> class names; the last one is the finest.
      examples: split -> a function that yields keys and examples.
      homepage: the address of the data set.
      data_dir: TFDS's data directory; empty for TFDS's default.
    """
    _, tfds = import_tfds(name)

    def info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        }
        features |= {level: tfds.features.ClassLabel(names=[*names]) for level, names in classes.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", [*classes][-1]),
            homepage=homepage,
        )

    body = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_generate_examples": lambda self, split: examples[split](),
        "_split_generators": lambda self, _: {split: self._generate_examples(split) for split in examples},
    }
    return builder(name, tfds.core.GeneratorBasedBuilder, body, data_dir)


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
