"""Images and their labels from where they lie: scikit-learn's digits, a TFDS data set, npz files, one's own images."""

import dataclasses
import os
import pathlib
import re

import numpy as np

from grafit_jax.data import hierarchy
from grafit_jax.data.datasets import catalog
from grafit_jax.data.files import read_npz
from grafit_jax.data.readers import folder, listing, tfds
from grafit_jax.data.records import InFiles, Level, Records, two_levels
from grafit_jax.errors import UserError

SPLITS = tfds.SPLITS
_DIGITS_WITH_LOOP = (0, 6, 8, 9)
# The kinds of sources that some options are for, in words.
_TFDS = {"tfds": "prepared TFDS data sets (tfds:NAME)"}
_FILES = dict.fromkeys(("folder", "csv"), "image files (folder:DIR, csv:FILE)")
_NPZ = "write it with numpy.savez, with arrays of numbers: image, coarse_label and, if fine labels are known, label"


def load(
    *,
    source: str,
    data_dir: str | None = None,
    stream: bool = False,
    coarse_classes: tuple[int, ...] = (),
    holdout: float = 0.0,
    image_size: int = 0,
    resize_mode: str = "squash",
    variant: str = "",
    train_level: str = "",
    inat_categories_file: str = "",
    on_unreadable: str = "fatal",
    test_split: str = "",
) -> dict[str, Records]:
    """The splits "train" and "test" of a source, always in the same order.

    Args:
      source: one of
        "digits": the 1,797 images 8x8x1 that come with scikit-learn (0..16 scaled to 0..255), halved once and for all;
          coarse class 0 has a closed loop (0 6 8 9), 1 has none.
        "tfds:NAME": a prepared TFDS data set with the features image, coarse_label and, if fine labels are known,
          label; or one of `catalog.CATALOG`, which says what its levels are and where their labels. Nothing is
          downloaded.
        "npz:DIR": the files *train.npz and *test.npz of a folder, each with image (uint8 [N, H, W, C]), coarse_label
          and, if fine labels are known, label (integers [N], from 0).
        "folder:DIR", "csv:FILE": image files and their classes; see `folder.read`.
      data_dir: where TFDS keeps its data sets; empty for TFDS's own default. Only "tfds:NAME" looks at it.
      stream: the training images stay in their files (`Records.image` is `InFiles`); for "tfds:NAME" and files.
      coarse_classes: keep only the images of these coarse classes, whichever level is trained on; see
        `hierarchy.select`. Empty: all.
      holdout: above 0, "test" is this share of the training split, drawn once and for all and evenly over the fine
        classes, and "train" is the rest; the test split stays unseen, and of files there need be none.
      image_size: above 0, images are resized to this many pixels a side (bilinear, antialiased) while they are decoded;
        for "tfds:NAME" and files, which need it where the images vary in size.
      resize_mode: how they become square then; see `crops.RESIZE_MODES`.
      variant: a choice of images and splits, of a data set of the catalog that has some. Empty: the data set's usual
        one, or all, in TFDS's splits.
      train_level: the level that is trained on, by its name. Empty: the data set's own coarse level.
      inat_categories_file: the file categories.json, of a data set of the catalog whose levels are in one. Empty: that
        file in the data set's own folder.
      on_unreadable: what to do with a file that cannot be read: "fatal" or "skip"; for "folder:DIR" and "csv:FILE".
      test_split: of these, what the test split is called; see `listing.list_images`.

    Returns:
      {"train": Records, "test": Records}, with the same classes and the same numbers of channels.

    Raises:
      UserError: a source that is not known, not there or not as described above; a variant or level that it does not
        have; a fine class that lies in two coarse ones; a coarse class that is not there; or a holdout that leaves
        nothing on one side.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"holdout = {holdout}: want a share of the training split, at least 0 and below 1.")
    if image_size < 0:
        raise UserError(f"data.image_size = {image_size}: want the pixels of a side, or 0 to leave images as they are.")
    if test_split not in ("", *listing.TEST_SPLITS):
        raise UserError(f"found data.test_split = {test_split!r}; expected one of {', '.join(listing.TEST_SPLITS)}.")
    kind, _, name = source.partition(":")
    for key, value, usual, kinds in (
        ("stream", stream, False, _TFDS | _FILES),
        ("image_size", image_size, 0, _TFDS | _FILES),
        ("variant", variant, "", _TFDS),
        ("inat_categories_file", inat_categories_file, "", _TFDS),
        ("on_unreadable", on_unreadable, "fatal", _FILES),
        ("test_split", test_split, "", _FILES),
    ):
        if value != usual and kind not in kinds:
            those = " or ".join(dict.fromkeys(kinds.values()))
            raise UserError(f"data.{key} = {value!r} is for {those}, not for {source}: leave it at {usual!r}.")
    if source == "digits":
        records = _digits()
    elif kind == "tfds" and name:
        records = tfds.read(
            name, data_dir, image_size=image_size, resize_mode=resize_mode, variant=variant, train_level=train_level,
            categories=inat_categories_file, coarse_classes=coarse_classes,
        )  # fmt: skip
    elif kind == "npz" and name:
        records = _npz(pathlib.Path(os.path.expanduser(name)))
    elif kind in ("folder", "csv") and name:
        records = folder.read(
            kind, name, coarse_classes, stream=stream, image_size=image_size, resize_mode=resize_mode,
            on_unreadable=on_unreadable, test_split=test_split, need_test=not holdout,
        )  # fmt: skip
    else:
        raise UserError(f"source = {source!r}: want digits, tfds:NAME, npz:DIR, folder:DIR or csv:FILE.")

    records = {split: _checked(r, f"{source}, split {split}") for split, r in records.items()}
    channels = {split: r.image.shape[-1] for split, r in records.items()}
    if len({*channels.values()}) > 1:
        found = " and ".join(f"{number} channels in {split}" for split, number in channels.items())
        raise UserError(f"{source}: found {found}; expected the same number.")
    hierarchy.check_nested([r.levels for r in records.values()])
    if coarse_classes:
        records = hierarchy.select(records, coarse_classes)
    if train_level:
        train = records["train"]
        known = [name for name, level in train.levels.items() if level.label is not None]
        hierarchy.check_level(train_level, known, train.train_level, source)
        records = {s: dataclasses.replace(r, train_level=train_level) for s, r in records.items()}
    if holdout:
        records = _split(records["train"], holdout)
        for split, r in records.items():
            if not len(r):
                raise UserError(f"holdout = {holdout} leaves no image for {split}: take a share further from 0 and 1.")
    for split, r in records.items():
        if isinstance(r.image, InFiles) and not (stream and split == "train"):
            records[split] = dataclasses.replace(r, image=r.image.read())
    return records


def usual_level(source: str) -> str:
    """The level that a source is trained on, if no other is asked for."""
    kind, _, name = source.partition(":")
    return catalog.find(re.split("[/:]", name)[0]).coarse if kind == "tfds" else "coarse"


def _checked(records: Records, where: str) -> Records:
    """`records` with int32 labels; UserError for anything that would go wrong later."""
    image = records.image
    if image.dtype != np.uint8 or image.ndim != 4:
        raise UserError(f"{where}: images are {image.dtype} {list(image.shape)}, want uint8 [N, H, W, C].")
    if image.shape[-1] not in (1, 3):
        raise UserError(
            f"{where}: images are {list(image.shape)}, with {image.shape[-1]} channels, want 1 or 3, and the channels "
            "last: [N, H, W, C]."
        )
    if 0 in image.shape:
        raise UserError(f"{where}: no image, want at least one, and of at least one pixel: found {list(image.shape)}.")

    def checked(name: str, level: Level) -> Level:
        label = level.label
        # TFDS marks labels that are withheld by -1.
        if label is None or (name != records.train_level and label.ndim == 1 and np.all(label == -1)):
            return level._replace(label=None)
        return level._replace(label=_checked_labels(label, hierarchy.key(name), level.names, len(image), where))

    return records.relabel(checked)


def _checked_labels(label: np.ndarray, key: str, names: tuple[str, ...], num_images: int, where: str) -> np.ndarray:
    if label.dtype.kind not in "iu" or label.shape != (num_images,):
        raise UserError(
            f"{where}: {key} is {label.dtype} {list(label.shape)}, want integers [{num_images}], one for every image."
        )
    low, high = int(label.min()), int(label.max())
    if low < 0:
        raise UserError(f"{where}: {key} goes down to {low}, want no negative label: number the classes from 0.")
    if high >= len(names):
        raise UserError(
            f"{where}: {key} goes up to {high}, want numbers below {len(names)}, for so many classes have a name."
        )
    return label.astype(np.int32)


def _split(records: Records, share: float) -> dict[str, Records]:
    """A share of every fine class (of every coarse one, without fine labels) as "test", the rest as "train".

    Of N images floor(share * N) are drawn, and of each class its part of them give or take one.
    """
    classes = records.train_label if records.label is None else records.label
    # RandomState's stream is frozen (NEP 19), so the split stays the same with every version of NumPy.
    order = np.lexsort((np.random.RandomState(0).random_sample(len(records)), classes))
    # Every 1/share-th image of the classes laid end to end. 1e-9: 0.29 * 100 is just below 29.
    filled = np.floor(share * np.arange(len(records) + 1) + 1e-9)
    drawn = np.zeros(len(records), bool)
    drawn[order] = np.diff(filled) > 0
    return {"train": records.take(~drawn), "test": records.take(drawn)}


def _digits() -> dict[str, Records]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    coarse_label = np.where(np.isin(digits.target, _DIGITS_WITH_LOOP), 0, 1)
    records = Records(
        image=np.round(digits.images * 255 / 16).astype(np.uint8)[..., None],
        levels=two_levels(digits.target, coarse_label, "0123456789", ("closed loop", "no loop")),
    )
    return _split(records, 0.5)


def _npz(folder: pathlib.Path) -> dict[str, Records]:
    if not os.path.isdir(folder):
        raise UserError(f"npz:{folder} is no folder: want one that holds *train.npz and *test.npz.")
    columns = {}
    for split in SPLITS:
        found = sorted(folder.glob(f"*{split}.npz"))
        if len(found) != 1:
            names = f" ({', '.join(path.name for path in found)})" if found else ""
            raise UserError(
                f"npz:{folder} holds {len(found)} files *{split}.npz{names}, want one: put one data set into one "
                "folder."
            )
        keys = {"image": "image"} | hierarchy.KEYS
        arrays = read_npz(found[0], [*keys.values()].__contains__, ("image", hierarchy.KEYS["coarse"]), _NPZ)
        columns[split] = {name: arrays[key] for name, key in keys.items() if key in arrays}
    return hierarchy.records_of(columns, dict.fromkeys(hierarchy.KEYS, ()), "coarse", f"npz:{folder}")
