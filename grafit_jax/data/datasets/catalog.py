"""What is known of particular TFDS data sets beyond their own features: levels of labels, splits and variants."""

import functools
import importlib.resources
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grafit_jax.data.datasets import taxonomy
from grafit_jax.data.datasets.taxonomy import Classes
from grafit_jax.errors import UserError, warn


class Variant(NamedTuple):
    """A choice among the images of a data set.

    Attributes:
      choose: from the fine labels (int [M] and [N]) of the two TFDS splits to {"train": rows, "test": rows}, ascending
        positions int [...] in the two splits laid end to end.
      published: how many images {"train": ..., "test": ...} have in the paper, or follow from the whole data set.
    """

    choose: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
    published: Mapping[str, int]

    def rows(self, labels: Sequence[np.ndarray], where: str) -> dict[str, np.ndarray]:
        """What `choose` says; numbers other than the published ones are warned of."""
        rows = self.choose(*labels)
        if {split: len(r) for split, r in rows.items()} != dict(self.published):
            warn(
                f"{where}: found {len(rows['train'])} training and {len(rows['test'])} test images, want "
                f"{self.published['train']} and {self.published['test']}: this is another choice."
            )
        return rows


class Entry(NamedTuple):
    """How the features and splits of a TFDS data set become records; the defaults hold for any that is not listed.

    Attributes:
      levels: the feature with the labels of each level, from coarse to fine; empty where they follow from the finest.
      coarse: the level that is trained on, if no other is asked for.
      hierarchy: a file of hierarchies/, without its ending, that has the coarse label of every fine one; or empty.
      taxonomy: the classes that each level should have, where the levels follow from the user's categories.json; or
        none.
      splits: TFDS's splits that serve as train and test, laid end to end.
      variants: by name. Without one all images are taken, in TFDS's own splits.
      default: the variant that is taken where none is asked for; empty for all images.
      manual: prepared by experiments/prepare.py, from files in a folder.
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
        """All of TFDS's splits that are read, laid end to end."""
        return tuple(itertools.chain(*self.splits.values()))

    def above(self, label_names: Sequence[str], categories: pathlib.Path | None, where: str) -> dict[str, Classes]:
        """The classes of the levels that follow from the finest one.

        Args:
          label_names: of the finest level.
          categories: the user's categories.json, where the levels are in one.
          where: what the data set is called in an error.

        Raises:
          UserError: the finest classes are not those of the file.
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
        """The variant of this name, the usual one for an empty name; UserError for one that is not there."""
        name = name or self.default
        if name and name not in self.variants:
            there = f"want {', '.join(self.variants)}, or none" if self.variants else "this data set has none: leave it"
            raise UserError(f"data.variant = {name!r} is no variant of {where}: {there} (an empty one).")
        return self.variants[name] if name else None


class Hierarchy(NamedTuple):
    """The coarse class of every fine one, from a file.

    Attributes:
      label_names: the names of the fine classes, as TFDS has them and in its order.
      coarse_of_fine: int32 [F], F = len(label_names).
      coarse_names: numbers, where the source has no names.
    """

    label_names: tuple[str, ...]
    coarse_of_fine: np.ndarray
    coarse_names: tuple[str, ...]

    def check(self, label_names: Sequence[str], where: str) -> None:
        """Raises a UserError unless the fine classes of a data set are those of the file."""
        if tuple(label_names) != self.label_names:
            pairs = zip(label_names, self.label_names, strict=False)
            found, wanted = next((pair for pair in pairs if pair[0] != pair[1]), ("no more", "no more"))
            raise UserError(
                f"{where} has {len(label_names)} classes (the first that differs is {found}), want the "
                f"{len(self.label_names)} of TFDS's own data set ({wanted}): prepare that one."
            )


@functools.cache
def load_hierarchy(name: str) -> Hierarchy:
    """A file of hierarchies/, by its name without the ending."""
    file = importlib.resources.files("grafit_jax.data.datasets") / "hierarchies" / f"{name}.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    label_names, coarse_of_fine = zip(*content["coarse_of_fine"], strict=True)
    coarse_names = content.get("coarse_names") or map(str, range(max(coarse_of_fine) + 1))
    return Hierarchy(label_names, np.array(coarse_of_fine, np.int32), tuple(coarse_names))


def find(name: str) -> Entry:
    """What is known of the TFDS data set `name` (without config and version)."""
    return CATALOG.get(name, Entry())


def _first_of(label: np.ndarray, number: int, among: Any = True) -> dict[str, np.ndarray]:
    """Of every class so many images for training, the others for the test; those that are `among` (bool [N]) alone.

    First in the order of the prepared files, which TFDS has shuffled. [ours]
    """
    order = np.argsort(label, kind="stable")
    place = np.empty(len(label), np.int64)  # how many images of the same class come before each
    place[order] = np.arange(len(label)) - np.searchsorted(label[order], label[order])
    return {"train": np.flatnonzero(among & (place < number)), "test": np.flatnonzero(among & (place >= number))}


def _sop_split1(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """The products with 8 to 12 images, in TFDS's own splits, which share no product.

    The bounds are the paper's; that they apply within each of these splits is our reading. [ours]
    """
    images = [np.bincount(label)[label] for label in (train, test)]  # of the same product
    kept = [np.flatnonzero((n >= 8) & (n <= 12)) for n in images]
    return {"train": kept[0], "test": len(train) + kept[1]}


def _sop_split2(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """The products with exactly 12 images over both splits: the first 10 for training, the last 2 for the test.

    The paper has 10 and 2 of each of 1,498 products; that these are the products with 12 images, and which ten are
    taken, is our reading. [ours]
    """
    label = np.concatenate([train, test])
    return _first_of(label, 10, np.bincount(label)[label] == 12)


def _within(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Of the 20 drawings of every character of TFDS's split train, the first 14 for training, the others for the test.

    Not always by the same people, since the files are shuffled. [ours]
    """
    return _first_of(train, 14)


def _unseen(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """TFDS's own splits: the alphabets of the test are not those of the training."""
    return {"train": np.arange(len(train)), "test": len(train) + np.arange(len(test))}


_TRAIN_VALIDATION = {"train": ("train",), "test": ("validation",)}
_FINE_ALONE = {"fine": "label"}
_FOLLOWS = {"coarse": "", "fine": "label"}

CATALOG: Mapping[str, Entry] = {
    "imagenet_resized": Entry(levels=_FOLLOWS, hierarchy="imagenet32", splits=_TRAIN_VALIDATION),
    "imagenet2012": Entry(levels=_FOLLOWS, hierarchy="imagenet127", splits=_TRAIN_VALIDATION),
    "cars196": Entry(levels=_FOLLOWS, hierarchy="cars196", manual=True),
    "stanford_online_products": Entry(
        levels={"coarse": "super_class_id", "fine": "class_id"},
        # Whether these readings reproduce the published numbers could not be checked without the data. [ours]
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
    "oxford_flowers102": Entry(
        levels=_FINE_ALONE, coarse="fine", splits={"train": ("train", "validation"), "test": ("test",)}
    ),
    "food101": Entry(levels=_FINE_ALONE, coarse="fine", splits=_TRAIN_VALIDATION),
}
