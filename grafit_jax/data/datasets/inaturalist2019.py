"""Prepares iNaturalist 2019, with its seven taxonomic levels, as a TFDS data set from the competition's files.

TFDS has no builder for it. The features are id, image and a label for each of `taxonomy.LEVELS`; species are in the
order of their category ids.
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

from grafit_jax.data.datasets import manual, taxonomy
from grafit_jax.data.files import read_json
from grafit_jax.errors import UserError, reading

IMAGES = "train_val2019"
# The annotations of each split.
FILES = {"train": "train2019.json", "validation": "val2019.json"}
_NUM_IMAGES = {"train": 265_240, "validation": 3_003}

# (image id, file, row of its category)
Example = tuple[str, pathlib.Path, int]


def prepare(manual_dir: pathlib.Path, data_dir: str | None = None) -> tuple[pathlib.Path, dict[str, int]]:
    """Writes the data set inaturalist2019 as tfrecord, unless it is already prepared.

    Prints a warning if the numbers of images or classes are not the published ones.

    Args:
      manual_dir: a folder with train_val2019/, train2019.json, val2019.json and categories.json with real names.
      data_dir: TFDS's data directory; empty for TFDS's default.

    Returns:
      The folder of the data set, and the number of images in train and test.

    Raises:
      UserError: a file or folder is missing or unreadable, or the annotations are invalid.
    """
    manual.check_folders(manual_dir, (IMAGES,), (*FILES.values(), taxonomy.FILE))
    categories = taxonomy.read(manual_dir / taxonomy.FILE)
    classes = taxonomy.classes(categories)
    row_of_category = {category["id"]: row for row, category in enumerate(categories)}
    examples = {split: _examples(manual_dir, name, row_of_category) for split, name in FILES.items()}
    builder = _builder(examples, classes, data_dir)
    if not builder.is_prepared():
        taxonomy.check_counts(classes, taxonomy.PUBLISHED_2019, "inaturalist2019")
        for split, of_split in examples.items():
            for _, image, _ in of_split:
                manual.check_image(image, FILES[split])
        manual.write(builder)
    number = manual.num_images(builder, _NUM_IMAGES)
    return pathlib.Path(builder.data_dir), {"train": number["train"], "test": number["validation"]}


def _examples(folder: pathlib.Path, name: str, row_of_category: dict[Any, int]) -> list[Example]:
    """Returns the examples of an annotations file."""
    path = folder / name
    expected = "expected that of iNaturalist 2019 in --manual_dir, with images and annotations"
    content = read_json(path, dict, expected)
    with reading(path, expected):
        category = {a["image_id"]: int(a["category_id"]) for a in content["annotations"]}
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
    for id_, file in files.items():
        if id_ not in category:
            raise UserError(f"{path}: found no annotation for {file} (image {id_}); expected one for every image.")
        if category[id_] not in row_of_category:
            raise UserError(
                f"{path}: found category {category[id_]} for {file}; expected one in {taxonomy.FILE}; use the files of "
                "iNaturalist 2019."
            )
    return [(str(id_), folder / file, row_of_category[category[id_]]) for id_, file in files.items()]


def _builder(examples: dict[str, list[Example]], classes: dict[str, taxonomy.Classes], data_dir: str | None) -> Any:
    def labelled(of_split: list[Example]) -> Iterator[tuple[str, dict[str, Any]]]:
        for id_, image, row in of_split:
            labels = {level: int(of_level.of_fine[row]) for level, of_level in classes.items()}
            yield id_, {"id": id_, "image": str(image), **labels}

    return manual.photo_builder(
        "inaturalist2019",
        {level: of_level.names for level, of_level in classes.items()},
        {split: functools.partial(labelled, of_split) for split, of_split in examples.items()},
        homepage="https://github.com/visipedia/inat_comp/tree/master/2019",
        data_dir=data_dir,
    )
