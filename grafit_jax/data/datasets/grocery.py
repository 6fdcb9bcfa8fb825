"""Prepares the Grocery Store Dataset (Klasson et al. 2019, MIT) as a TFDS data set from a clone of its repository.

It has photos of groceries in 43 coarse and 81 fine classes: https://github.com/marcusklasson/GroceryStoreDataset. The
features are id, image, coarse_label and label. Photos are scaled to `SIDE` px on their shorter side. A CSV beside them,
for `csv:`, lists the clone's photos with a third level above: Fruit, Packages or Vegetables.
"""

import csv
import functools
import io
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import PIL.Image
import PIL.ImageOps

from grafit_jax.data.datasets import manual
from grafit_jax.errors import UserError, reading, writing

CLASSES = "classes.csv"
# The list with the third level, in the folder of the prepared data set, and its levels.
LIST, LEVELS = "levels.csv", ("group", "class", "variety")
# The list of each split: a line of path, fine and coarse number for each photo.
FILES = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
NUM_IMAGES = {"train": 2640, "validation": 296, "test": 2485}
SIDE = 176
_QUALITY = 88
_EXPECTED = "expected that of the Grocery Store Dataset in --manual_dir"


class _Photo(NamedTuple):
    path: str
    fine: int
    coarse: int


def prepare(manual_dir: pathlib.Path, data_dir: str | None = None) -> tuple[pathlib.Path, dict[str, int]]:
    """Writes the data set grocery as tfrecord, unless it is already prepared, and the CSV beside it.

    Prints a warning if the numbers of photos are not the published ones.

    Args:
      manual_dir: a clone of the repository, or its folder dataset.
      data_dir: TFDS's data directory; empty for TFDS's default.

    Returns:
      The folder of the data set, and the number of images in train, validation and test.

    Raises:
      UserError: a file or folder is missing or unreadable, or a list is invalid.
    """
    folder = manual_dir / "dataset" if (manual_dir / "dataset").is_dir() else manual_dir
    manual.check_folders(folder, ("train", "val", "test"), (CLASSES, *FILES.values()))
    fine, coarse = _names(folder / CLASSES)
    photos = {split: _listed(folder / name, len(fine), len(coarse)) for split, name in FILES.items()}
    builder = _builder(folder, photos, fine, coarse, data_dir)
    if not builder.is_prepared():
        for split, of_split in photos.items():
            for photo in of_split:
                manual.check_image(folder / photo.path, FILES[split])
        manual.write(builder)
    _write_list(pathlib.Path(builder.data_dir) / LIST, folder, photos, fine, coarse)
    return pathlib.Path(builder.data_dir), manual.num_images(builder, NUM_IMAGES)


def _names(path: pathlib.Path) -> tuple[list[str], list[str]]:
    """Returns the names of the fine and the coarse classes, in the order of their numbers."""
    with reading(path, _EXPECTED), open(path, newline="", encoding="utf-8") as file:
        rows = [[cell.strip() for cell in row[:4]] for row in csv.reader(file) if row][1:]
        fine = {int(number): name for name, number, *_ in rows}
        coarse = {int(number): name for *_, name, number in rows}
    for names in (fine, coarse):
        if sorted(names) != [*range(len(names))]:
            raise UserError(f"{path}: found class numbers with gaps; expected 0, 1, 2, …; use the repository's file.")
    return [fine[i] for i in range(len(fine))], [coarse[i] for i in range(len(coarse))]


def _listed(path: pathlib.Path, num_fine: int, num_coarse: int) -> list[_Photo]:
    """Returns the photos of a split's list."""
    with reading(path, _EXPECTED), open(path, newline="", encoding="utf-8") as file:
        photos = [_Photo(row[0].strip(), int(row[1]), int(row[2])) for row in csv.reader(file) if row]
    for photo in photos:
        if not (0 <= photo.fine < num_fine and 0 <= photo.coarse < num_coarse):
            raise UserError(
                f"{path}: found classes {photo.fine} and {photo.coarse} for {photo.path}; expected less than "
                f"{num_fine} and {num_coarse}, as in {CLASSES}."
            )
    return photos


def _write_list(
    path: pathlib.Path, folder: pathlib.Path, photos: dict[str, list[_Photo]], fine: list[str], coarse: list[str]
) -> None:
    """Writes the photos with their classes from coarse to fine; the coarsest is the folder below the split."""
    with writing(path), open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", *LEVELS])
        for split, of_split in photos.items():
            for photo in of_split:
                group = pathlib.PurePosixPath(photo.path).parts[1]
                place = (folder / photo.path).resolve()
                writer.writerow([place, split, group, coarse[photo.coarse], fine[photo.fine]])


def _scaled(path: pathlib.Path) -> bytes:
    """Returns the photo as a JPEG file of `SIDE` px on its shorter side; a JPEG of that size as it is."""
    with PIL.Image.open(path) as image:
        if min(image.size) == SIDE and image.format == "JPEG":
            return path.read_bytes()
        scale = SIDE / min(image.size)
        width, height = (round(scale * side) for side in image.size)
        written = io.BytesIO()
        upright = PIL.ImageOps.exif_transpose(image)
        upright.convert("RGB").resize((width, height), PIL.Image.Resampling.LANCZOS).save(
            written, "JPEG", quality=_QUALITY
        )
    return written.getvalue()


def _builder(
    folder: pathlib.Path, photos: dict[str, list[_Photo]], fine: list[str], coarse: list[str], data_dir: str | None
) -> Any:
    def examples(of_split: list[_Photo]) -> Iterator[tuple[str, dict[str, Any]]]:
        for photo in of_split:
            image = io.BytesIO(_scaled(folder / photo.path))
            yield photo.path, {"id": photo.path, "image": image, "coarse_label": photo.coarse, "label": photo.fine}

    return manual.photo_builder(
        "grocery",
        {"coarse_label": coarse, "label": fine},
        {split: functools.partial(examples, of_split) for split, of_split in photos.items()},
        homepage="https://github.com/marcusklasson/GroceryStoreDataset",
        data_dir=data_dir,
    )
