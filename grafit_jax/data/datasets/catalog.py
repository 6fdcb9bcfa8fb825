"""A catalog of TFDS data sets: the levels, splits and variants that their own features do not define."""

import functools
import importlib.resources
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grafit_jax.data.datasets import grocery, taxonomy
from grafit_jax.data.datasets.taxonomy import Classes
from grafit_jax.errors import UserError, warn


class Variant(NamedTuple):
    """A selection of the images of a data set.

    Attributes:
      choose: maps the fine labels (int [M], int [N], …) of the TFDS splits to {"train": rows, "test": rows}, ascending
        positions int [...] in these splits concatenated.
      published: the number of images {"train": ..., "test": ...} that the paper gives or the full data set implies.
    """

    choose: Callable[..., dict[str, np.ndarray]]
    published: Mapping[str, int]

    def rows(self, labels: Sequence[np.ndarray], where: str) -> dict[str, np.ndarray]:
        """Returns the selected rows; prints a warning if their numbers are not the published ones."""
        rows = self.choose(*labels)
        if {split: len(r) for split, r in rows.items()} != dict(self.published):
            warn(
                f"{where}: found {len(rows['train'])} training and {len(rows['test'])} test images; expected "
                f"{self.published['train']} and {self.published['test']}; results are not comparable with published "
                "ones."
            )
        return rows


class Entry(NamedTuple):
    """How a TFDS data set maps to records; the defaults apply to data sets that are not in the catalog.

    Attributes:
      levels: the feature with the labels of each level, from coarse to fine; empty if derived from the finest level.
      coarse: the default training level.
      hierarchy: the stem of a file in hierarchies/ that maps fine to coarse labels; or empty.
      taxonomy: the expected number of classes of each level derived from iNaturalist's categories.json; or empty.
      splits: TFDS's splits to concatenate for train and test.
      variants: the variants by name.
      default: the variant used if none is requested; empty for all images in `splits`.
      manual: whether experiments/prepare.py prepares the data set from local files.
    """

    levels: Mapping[str, str] = {"coarse": "coarse_label", "fine": "label"}
    coarse: str = "coarse"
    hierarchy: str = ""
    taxonomy: Mapping[str, int] = {}
    splits: Mapping[str, tuple[str, ...]] = {"train": ("train",), "test": ("test",)}
    variants: Mapping[str, Variant] = {}
    default: str = ""
    manual: bool = False

    @property
    def finest(self) -> str:
        """The name of the finest level."""
        return [*self.levels][-1]

    @property
    def tfds_splits(self) -> tuple[str, ...]:
        """All TFDS splits to read, in the order of concatenation."""
        return tuple(itertools.chain(*self.splits.values()))

    def above(self, label_names: Sequence[str], categories: pathlib.Path | None, where: str) -> dict[str, Classes]:
        """Returns the classes of the levels derived from the finest level.

        Args:
          label_names: the class names of the finest level.
          categories: the path of categories.json, if it defines the levels.
          where: the name of the data set in messages.

        Raises:
          UserError: the finest classes differ from those of the file.
        """
        if self.hierarchy:
            table = load_hierarchy(self.hierarchy)
            table.check(label_names, where)
            return {self.coarse: Classes(table.coarse_of_fine, table.coarse_names)}
        if categories is None:
            return {}
        found = taxonomy.of_labels(categories, label_names, where)
        taxonomy.check_counts(found, self.taxonomy, where)
        return found

    def variant(self, name: str, where: str) -> Variant | None:
        """Returns the variant `name` (the default if empty), or None for all images; raises UserError if unknown."""
        name = name or self.default
        if name and name not in self.variants:
            expected = (
                f"{', '.join(self.variants)}, or empty" if self.variants else "no variant, since this data set has none"
            )
            raise UserError(f"{where}: found data.variant = {name!r}; expected {expected}.")
        return self.variants[name] if name else None


class Hierarchy(NamedTuple):
    """The coarse class of every fine class.

    Attributes:
      label_names: the names of the F fine classes, in TFDS's order.
      coarse_of_fine: the coarse class of each fine class, int32 [F].
      coarse_names: the names of the coarse classes; numbers if the source has no names.
    """

    label_names: tuple[str, ...]
    coarse_of_fine: np.ndarray
    coarse_names: tuple[str, ...]

    def check(self, label_names: Sequence[str], where: str) -> None:
        """Raises a UserError if the fine classes of a data set differ from `label_names`."""
        if tuple(label_names) != self.label_names:
            pairs = itertools.zip_longest(label_names, self.label_names, fillvalue="no more")
            found, expected = next(pair for pair in pairs if pair[0] != pair[1])
            raise UserError(
                f"{where}: found {len(label_names)} classes (the first difference is {found}); expected TFDS's own "
                f"{len(self.label_names)} ({expected}); prepare TFDS's own data set."
            )


@functools.cache
def load_hierarchy(name: str) -> Hierarchy:
    """Loads the file `name`.json of hierarchies/."""
    file = importlib.resources.files("grafit_jax.data.datasets") / "hierarchies" / f"{name}.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    label_names, coarse_of_fine = zip(*content["coarse_of_fine"], strict=True)
    coarse_names = content.get("coarse_names") or map(str, range(max(coarse_of_fine) + 1))
    return Hierarchy(label_names, np.array(coarse_of_fine, np.int32), tuple(coarse_names))


def find(name: str) -> Entry:
    """Returns the entry of the TFDS data set `name` (without config and version)."""
    return CATALOG.get(name, Entry())


def _first_of(label: np.ndarray, number: int, among: Any = True) -> dict[str, np.ndarray]:
    """Splits the images `among` (bool [N]): the first `number` of each class are train, the others test.

    "First" is in the order of the prepared files, which TFDS has shuffled. [ours]
    """
    order = np.argsort(label, kind="stable")
    rank = np.empty(len(label), np.int64)  # the number of earlier images of the same class
    rank[order] = np.arange(len(label)) - np.searchsorted(label[order], label[order])
    return {"train": np.flatnonzero(among & (rank < number)), "test": np.flatnonzero(among & (rank >= number))}


def _sop_split1(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Selects the products with 8 to 12 images, in TFDS's own splits, which share no product.

    The bounds are the paper's; applying them within each split is our reading. [ours]
    """
    images = [np.bincount(label)[label] for label in (train, test)]  # of the same product
    kept = [np.flatnonzero((n >= 8) & (n <= 12)) for n in images]
    return {"train": kept[0], "test": len(train) + kept[1]}


def _sop_split2(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Selects the products with exactly 12 images over both splits: the first 10 are train, the last 2 test.

    The paper has 10 and 2 images of each of 1,498 products; which products and which images is our reading. [ours]
    """
    label = np.concatenate([train, test])
    return _first_of(label, 10, np.bincount(label)[label] == 12)


def _within(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Splits the 20 drawings of each character of TFDS's train split: the first 14 are train, the others test.

    The files are shuffled, so the drawers differ between characters. [ours]
    """
    return _first_of(train, 14)


def _unseen(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Returns TFDS's own splits, which share no alphabet."""
    return {"train": np.arange(len(train)), "test": len(train) + np.arange(len(test))}


def _grocery(test: str) -> Variant:
    """Returns the variant that is tested on the split `test`: validation, to choose settings, or test."""

    def choose(*labels: np.ndarray) -> dict[str, np.ndarray]:
        first, rows = 0, {}
        for split, label in zip(grocery.FILES, labels, strict=True):
            rows[split] = np.arange(first, first + len(label))
            first += len(label)
        return {"train": rows["train"], "test": rows[test]}

    return Variant(choose, {"train": grocery.NUM_IMAGES["train"], "test": grocery.NUM_IMAGES[test]})


_TRAIN_VALIDATION = {"train": ("train",), "test": ("validation",)}
_FINE_ALONE = {"fine": "label"}
_FOLLOWS = {"coarse": "", "fine": "label"}

CATALOG: Mapping[str, Entry] = {
    "imagenet_resized": Entry(levels=_FOLLOWS, hierarchy="imagenet32", splits=_TRAIN_VALIDATION),
    "imagenet2012": Entry(levels=_FOLLOWS, hierarchy="imagenet127", splits=_TRAIN_VALIDATION),
    "cars196": Entry(levels=_FOLLOWS, hierarchy="cars196", manual=True),
    "stanford_online_products": Entry(
        levels={"coarse": "super_class_id", "fine": "class_id"},
        # Not verified against the data: these readings may not give the published numbers of images. [ours]
        variants={
            "split1": Variant(_sop_split1, {"train": 25368, "test": 25278}),
            "split2": Variant(_sop_split2, {"train": 14980, "test": 2996}),
        },
    ),
    "i_naturalist2018": Entry(
        levels=dict.fromkeys(taxonomy.LEVELS, "") | {"species": "label"},
        coarse="genus",
        taxonomy=taxonomy.PUBLISHED_2018,
        splits=_TRAIN_VALIDATION,
    ),
    "inaturalist2019": Entry(
        levels={level: level for level in taxonomy.LEVELS}, coarse="genus", splits=_TRAIN_VALIDATION, manual=True
    ),
    "omniglot": Entry(
        levels={"coarse": "alphabet", "fine": "label"},
        variants={
            "within": Variant(_within, {"train": 964 * 14, "test": 964 * 6}),
            "unseen": Variant(_unseen, {"train": 19280, "test": 13180}),
        },
        default="within",
    ),
    "grocery": Entry(
        splits={"train": ("train", "validation"), "test": ("test",)},
        variants={"test": _grocery("test"), "validation": _grocery("validation")},
        default="test",
        manual=True,
    ),
    "oxford_flowers102": Entry(
        levels=_FINE_ALONE, coarse="fine", splits={"train": ("train", "validation"), "test": ("test",)}
    ),
    "food101": Entry(levels=_FINE_ALONE, coarse="fine", splits=_TRAIN_VALIDATION),
}
