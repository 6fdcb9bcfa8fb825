"""What is known of particular TFDS data sets beyond their own features: labels, splits and variants.

The hierarchies and variants are those of protocol "maskcon" (Feng & Patras, CVPR 2023).
"""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from grafit_jax.errors import UserError, warn


@dataclasses.dataclass(frozen=True)
class Variant:
    """A choice among the images of a data set.

    Attributes:
      choose: from the fine labels (int [M] and [N]) of the two TFDS splits to {"train": rows, "test": rows}, ascending
        positions int [...] in the two splits laid end to end.
      published: how many images {"train": ..., "test": ...} have in the paper.
    """

    choose: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
    published: Mapping[str, int]

    def rows(self, labels: Sequence[np.ndarray], where: str) -> dict[str, np.ndarray]:
        """What `choose` says; numbers other than the published ones are warned of."""
        rows = self.choose(*labels)
        if {split: len(r) for split, r in rows.items()} != dict(self.published):
            warn(
                f"{where}: found {len(rows['train'])} training and {len(rows['test'])} test images, and the paper has "
                f"{self.published['train']} and {self.published['test']}: this is another choice."
            )
        return rows


@dataclasses.dataclass(frozen=True)
class Entry:
    """How the features and splits of a TFDS data set become records; the defaults hold for any that is not listed.

    Attributes:
      label: the feature with the fine label.
      coarse_label: the feature with the coarse label; not looked at where there is a hierarchy.
      hierarchy: a file of hierarchies/, without its ending, that has the coarse label of every fine one; or empty.
      splits: TFDS's splits that serve as train and test.
      variants: by name. Without one all images are taken, in TFDS's own splits.
    """

    label: str = "label"
    coarse_label: str = "coarse_label"
    hierarchy: str = ""
    splits: tuple[str, str] = ("train", "test")
    variants: Mapping[str, Variant] = dataclasses.field(default_factory=dict)

    def variant(self, name: str, where: str) -> Variant | None:
        """The variant of this name, None for an empty one; UserError for one that is not there."""
        if name and name not in self.variants:
            there = f"want {', '.join(self.variants)}, or none" if self.variants else "this data set has none: leave it"
            raise UserError(f"data.variant = {name!r} is no variant of {where}: {there} (an empty one).")
        return self.variants[name] if name else None


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """The coarse class of every fine one, from a file.

    Attributes:
      source: where it comes from.
      label_names: the names of the fine classes, as TFDS has them and in its order.
      coarse_of_fine: int32 [F], F = len(label_names).
      coarse_names: numbers, since the source has no names.
    """

    source: str
    label_names: tuple[str, ...]
    coarse_of_fine: np.ndarray
    coarse_names: tuple[str, ...]

    def coarse(self, label: np.ndarray, label_names: Sequence[str], where: str) -> np.ndarray:
        """int32 [N], the coarse labels of the fine labels `label`, int [N], of a data set.

        Raises:
          UserError: the fine classes of the data set are not those of the file, or an image has none.
        """
        if tuple(label_names) != self.label_names:
            pairs = zip(label_names, self.label_names, strict=False)
            found, wanted = next((pair for pair in pairs if pair[0] != pair[1]), ("no more", "no more"))
            raise UserError(
                f"{where} has {len(label_names)} classes (the first that differs is {found}), want the "
                f"{len(self.label_names)} of TFDS's own data set ({wanted}): prepare that one."
            )
        if label.size and label.min() < 0:
            raise UserError(
                f"{where} has images without a fine label (-1), want one for each: no coarse label follows."
            )
        return self.coarse_of_fine[label]


@functools.cache
def load_hierarchy(name: str) -> Hierarchy:
    """A file of hierarchies/, by its name without the ending."""
    file = importlib.resources.files("grafit_jax.data") / "hierarchies" / f"{name}.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    label_names, coarse_of_fine = zip(*content["coarse_of_fine"], strict=True)
    coarse_names = tuple(str(i) for i in range(max(coarse_of_fine) + 1))
    return Hierarchy(content["source"], label_names, np.array(coarse_of_fine, np.int32), coarse_names)


def find(name: str) -> Entry:
    """What is known of the TFDS data set `name` (without config and version)."""
    return CATALOG.get(name, Entry())


def _sop_split1(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """The products with 8 to 12 images, in TFDS's own splits, which share no product.

    The bounds are the paper's; that they apply within each of these splits is our reading. [ours]
    """
    kept = []
    for label in (train, test):
        images = np.bincount(label)[label]  # of the same product
        kept.append(np.flatnonzero((images >= 8) & (images <= 12)))
    return {"train": kept[0], "test": len(train) + kept[1]}


def _sop_split2(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """The products with exactly 12 images over both splits: the first 10 for training, the last 2 for the test.

    First and last in the order of the prepared files, which TFDS has shuffled. The paper has 10 and 2 of each of 1,498
    products; that these are the products with 12 images, and which ten are taken, is our reading. [ours]
    """
    label = np.concatenate([train, test])
    rows = np.flatnonzero(np.bincount(label)[label] == 12)
    # One line for each product, its images in their order.
    of_product = rows[np.argsort(label[rows], kind="stable")].reshape(-1, 12)
    return {"train": np.sort(of_product[:, :10], axis=None), "test": np.sort(of_product[:, 10:], axis=None)}


CATALOG: Mapping[str, Entry] = {
    "imagenet_resized": Entry(hierarchy="imagenet32", splits=("train", "validation")),
    "cars196": Entry(hierarchy="cars196"),
    "stanford_online_products": Entry(
        label="class_id",
        coarse_label="super_class_id",
        # Whether these readings reproduce the published numbers could not be checked without the data. [ours]
        variants={
            "split1": Variant(_sop_split1, {"train": 25368, "test": 25278}),
            "split2": Variant(_sop_split2, {"train": 14980, "test": 2996}),
        },
    ),
}
