"""iNaturalist 2019 as a TFDS data set with the seven levels of the tree of life, from the competition's files.

TFDS has no such builder. The features are id, image and a label for each level, named as in `taxonomy.LEVELS`; species
are in the order of their category ids.
"""

import os
import pathlib
from typing import Any

import PIL.Image

from grafit_jax.data import tensorflow
from grafit_jax.data.datasets import taxonomy
from grafit_jax.data.files import read_json
from grafit_jax.errors import UserError, reading, warn

IMAGES = "train_val2019"
# The annotations of each split.
FILES = {"train": "train2019.json", "validation": "val2019.json"}
_NUM_IMAGES = {"train": 265_240, "validation": 3_003}

# The id of an image, its file and the row of its category.
Example = tuple[str, pathlib.Path, int]


def prepare(manual_dir: pathlib.Path, data_dir: str | None = None) -> tuple[pathlib.Path, dict[str, int]]:
    """Writes the data set inaturalist2019 as tfrecord; one that is there already stays as it is.

    Args:
      manual_dir: a folder with train_val2019/, train2019.json, val2019.json and categories.json with real names.
      data_dir: where TFDS keeps its data sets; empty for TFDS's own default.

    Returns:
      Its folder, and the number of images of training and test. Other numbers of images or of classes than the
      published ones are warned of.

    Raises:
      UserError: a file or folder that is missing or cannot be read, or annotations that do not fit.
    """
    for path, is_there in ((manual_dir, manual_dir.is_dir()), (manual_dir / IMAGES, (manual_dir / IMAGES).is_dir())):
        if not is_there:
            raise UserError(
                f"{path} is no folder: want {IMAGES}, {', '.join(FILES.values())} and {taxonomy.FILE} in --manual_dir."
            )
    categories = taxonomy.read(manual_dir / taxonomy.FILE)
    classes = taxonomy.classes(categories)
    row_of_category = {category["id"]: row for row, category in enumerate(categories)}
    examples = {split: _examples(manual_dir, name, row_of_category) for split, name in FILES.items()}
    builder = _builder(examples, classes, os.path.expanduser(data_dir) if data_dir else None)
    if not builder.is_prepared():
        taxonomy.check_counts(classes, taxonomy.PUBLISHED_2019, "inaturalist2019")
        for split, of_split in examples.items():
            _check_images(of_split, FILES[split])
            if len(of_split) != _NUM_IMAGES[split]:
                warn(
                    f"inaturalist2019, split {split}: found {len(of_split)} images, and iNaturalist 2019 has "
                    f"{_NUM_IMAGES[split]}."
                )
    folder = tensorflow.write(builder)
    train, test = (builder.info.splits[split].num_examples for split in FILES)
    return folder, {"train": train, "test": test}


def _examples(folder: pathlib.Path, name: str, row_of_category: dict[Any, int]) -> list[Example]:
    """The images that a file of annotations lists."""
    path = folder / name
    want = "want that of iNaturalist 2019 in --manual_dir, with images and annotations"
    content = read_json(path, dict, want)
    with reading(path, want):
        category = {a["image_id"]: int(a["category_id"]) for a in content["annotations"]}
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
    for id_, file in files.items():
        if id_ not in category:
            raise UserError(f"{path} has no annotation for {file} (image {id_}): want one for every image.")
        if category[id_] not in row_of_category:
            raise UserError(
                f"{path} has category {category[id_]} for {file}, which {taxonomy.FILE} lacks: want the one of "
                "iNaturalist 2019."
            )
    return [(str(id_), folder / file, row_of_category[category[id_]]) for id_, file in files.items()]


def _check_images(examples: list[Example], name: str) -> None:
    """Raises a UserError for what cannot be read, before the writing rather than in the midst of it."""
    for _, image, _ in examples:
        if not os.path.isfile(image):
            raise UserError(f"{image} is missing, and {name} lists it: add the image.")
        with reading(image, "want an image; replace it"):
            PIL.Image.open(image).close()


def _builder(examples: dict[str, list[Example]], classes: dict[str, taxonomy.Classes], data_dir: str | None):
    _, tfds = tensorflow.import_tfds()

    def info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        }
        features |= {level: tfds.features.ClassLabel(names=list(of_level.names)) for level, of_level in classes.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", taxonomy.LEVELS[-1]),
            homepage="https://github.com/visipedia/inat_comp/tree/master/2019",
        )

    def generate(self, split):
        for id_, image, row in examples[split]:
            labels = {level: int(of_level.of_fine[row]) for level, of_level in classes.items()}
            yield id_, {"id": id_, "image": str(image), **labels}

    body = {
        # TFDS looks for files of its own beside a builder's module, unless that is in no package.
        "__module__": "inaturalist2019",
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_generate_examples": generate,
        "_split_generators": lambda self, _: {split: self._generate_examples(split) for split in examples},
    }
    with tfds.core.registered.skip_registration():  # what is prepared is read by its files alone
        cls = type("Inaturalist2019", (tfds.core.GeneratorBasedBuilder,), body)
    return cls(data_dir=data_dir, file_format="tfrecord")
