"""Data sources: scikit-learn's digits, TFDS data sets, npz files, image folders and CSV files."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from grafit_jax.data import decoded, hierarchy
from grafit_jax.data.datasets import catalog
from grafit_jax.data.files import read_npz
from grafit_jax.data.readers import folder, listing, tfds
from grafit_jax.data.records import InFiles, Level, Records, two_levels
from grafit_jax.errors import UserError, warn

SPLITS = tfds.SPLITS
_DIGITS_WITH_LOOP = (0, 6, 8, 9)
# The kinds of sources that support some options, with their names in messages.
_TFDS = {"tfds": "prepared TFDS data sets (tfds:NAME)"}
_FILES = dict.fromkeys(("folder", "csv"), "image files (folder:DIR, csv:FILE)")
_NPZ = "write it with numpy.savez as numeric arrays image, coarse_label and, if fine labels are known, label"


def load(*, cache: str = "", **how: Any) -> dict[str, Records]:
    """Returns `read(**how)`, kept in the folder `cache` for later calls if one is given and the images are decoded."""
    if not cache:
        return read(**how)
    if how.get("stream") or how["source"].partition(":")[0] not in decoded.KINDS:
        found = "data.stream = True" if how.get("stream") else f"data.source = {how['source']}"
        warn(f"found data.cache with {found}, where it has no effect")
        return read(**how)
    return decoded.through(cache, how, lambda: read(**how))


def read(
    *,
    source: str,
    data_dir: str | None = None,
    stream: bool = False,
    coarse_classes: tuple[int | str, ...] = (),
    holdout: float = 0.0,
    image_size: int = 0,
    resize_mode: str = "squash",
    variant: str = "",
    train_level: str = "",
    inat_categories_file: str = "",
    on_unreadable: str = "fatal",
    test_split: str = "",
) -> dict[str, Records]:
    """Returns the splits "train" and "test" of a source, with the images in a fixed order.

    Args:
      source: one of
        "digits": scikit-learn's 1,797 images 8x8x1 (0..16 scaled to 0..255) in two fixed halves; coarse class 0 has a
          closed loop (0 6 8 9), 1 has none.
        "tfds:NAME": a prepared TFDS data set with the features image, coarse_label and, optionally, label; or one of
          `catalog.CATALOG`, which defines its levels. Nothing is downloaded.
        "npz:DIR": the files *train.npz and *test.npz of a folder, each with image (uint8 [N, H, W, C]), coarse_label
          and, optionally, label (integers [N], from 0).
        "folder:DIR", "csv:FILE": image files and their classes; see `folder.read`.
      data_dir: TFDS's data directory, used by "tfds:NAME" only; empty for TFDS's default.
      stream: keep the training images in their files (`Records.image` is `InFiles`); for "tfds:NAME" and image files.
      coarse_classes: the coarse classes to keep, by number or name, whatever `train_level` is; see `hierarchy.select`.
        Empty keeps all.
      holdout: above 0, the share of the training split that becomes "test", drawn once, evenly over the fine classes;
        the rest is "train". The real test split is not used and may be absent.
      image_size: above 0, the side in pixels to resize images to while decoding (bilinear, antialiased); required for
        "tfds:NAME" and image files whose images vary in size.
      resize_mode: how to make resized images square, a key of `crops.RESIZE_MODES`.
      variant: a variant of a data set of the catalog, which selects images and splits. Empty for the default.
      train_level: the name of the level to train on. Empty for the data set's coarse level.
      inat_categories_file: the categories.json that defines the levels of a data set. Empty for the one in its folder.
      on_unreadable: how to treat unreadable files of "folder:DIR" and "csv:FILE": "fatal" or "skip".
      test_split: the name of the test split of "folder:DIR" and "csv:FILE"; see `listing.list_images`.

    Returns:
      {"train": Records, "test": Records}, with the same classes and the same number of channels.

    Raises:
      UserError: the source is unknown, absent or malformed; it lacks the variant, level or coarse class; a fine class
        lies in two coarse classes; or the holdout leaves a split empty.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"found holdout = {holdout}; expected a share of the training split, at least 0 and below 1.")
    if image_size < 0:
        raise UserError(f"found data.image_size = {image_size}; expected the side in pixels, or 0 for no resizing.")
    if test_split not in ("", *listing.TEST_SPLITS):
        raise UserError(f"found data.test_split = {test_split!r}; expected one of {', '.join(listing.TEST_SPLITS)}.")
    kind, _, name = source.partition(":")
    for key, value, default, kinds in (
        ("stream", stream, False, _TFDS | _FILES),
        ("image_size", image_size, 0, _TFDS | _FILES),
        ("variant", variant, "", _TFDS),
        ("inat_categories_file", inat_categories_file, "", _TFDS),
        ("on_unreadable", on_unreadable, "fatal", _FILES),
        ("test_split", test_split, "", _FILES),
    ):
        if value != default and kind not in kinds:
            supported = " or ".join(dict.fromkeys(kinds.values()))
            raise UserError(
                f"found data.{key} = {value!r} with {source}; expected it only with {supported}; use {default!r}."
            )
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
        raise UserError(f"found source = {source!r}; expected digits, tfds:NAME, npz:DIR, folder:DIR or csv:FILE.")

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
                raise UserError(f"found no image for {split} with holdout = {holdout}; use a share closer to 0.5.")
    for split, r in records.items():
        if isinstance(r.image, InFiles) and not (stream and split == "train"):
            records[split] = dataclasses.replace(r, image=r.image.read())
    return records


def usual_level(source: str, levels: Iterable[str]) -> str:
    """Returns the default training level of a source with these levels, from coarse to fine."""
    kind, _, name = source.partition(":")
    return catalog.find(re.split("[/:]", name)[0]).coarse if kind == "tfds" else next(iter(levels))


def _checked(records: Records, where: str) -> Records:
    """Returns `records` with int32 labels; raises UserError for malformed images or labels."""
    image = records.image
    if image.dtype != np.uint8 or image.ndim != 4:
        raise UserError(f"{where}: found images {image.dtype} {list(image.shape)}; expected uint8 [N, H, W, C].")
    if image.shape[-1] not in (1, 3):
        raise UserError(
            f"{where}: found images {list(image.shape)} with {image.shape[-1]} channels; expected 1 or 3, in the last "
            "dimension [N, H, W, C]."
        )
    if 0 in image.shape:
        raise UserError(f"{where}: found images {list(image.shape)}; expected at least one image and one pixel.")

    def checked(name: str, level: Level) -> Level:
        label = level.label
        # TFDS marks withheld labels by -1.
        if label is None or (name != records.train_level and label.ndim == 1 and np.all(label == -1)):
            return level._replace(label=None)
        return level._replace(label=_checked_labels(label, hierarchy.key(name), level.names, len(image), where))

    return records.relabel(checked)


def _checked_labels(label: np.ndarray, key: str, names: tuple[str, ...], num_images: int, where: str) -> np.ndarray:
    if label.dtype.kind not in "iu" or label.shape != (num_images,):
        raise UserError(
            f"{where}: found {key} of {label.dtype} {list(label.shape)}; expected integers [{num_images}], one for "
            "every image."
        )
    low, high = int(label.min()), int(label.max())
    if low < 0:
        raise UserError(f"{where}: found {key} {low}; expected no negative label; number the classes from 0.")
    if high >= len(names):
        raise UserError(f"{where}: found {key} {high}; expected labels below {len(names)}, the number of class names.")
    return label.astype(np.int32)


def _split(records: Records, share: float) -> dict[str, Records]:
    """Draws a share of every fine class (or coarse class, without fine labels) as "test"; the rest is "train".

    Draws floor(share * N) of N images, and share * n of the n images of each class, give or take one.
    """
    classes = records.train_label if records.label is None else records.label
    # RandomState's stream is frozen (NEP 19), so every version of NumPy draws the same split.
    order = np.lexsort((np.random.RandomState(0).random_sample(len(records)), classes))
    # Take every (1/share)-th image of the images sorted by class. 1e-9: 0.29 * 100 is just below 29.
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
        raise UserError(f"npz:{folder}: found no such folder; expected one with *train.npz and *test.npz.")
    columns = {}
    for split in SPLITS:
        found = sorted(folder.glob(f"*{split}.npz"))
        if len(found) != 1:
            names = f" ({', '.join(path.name for path in found)})" if found else ""
            raise UserError(
                f"npz:{folder}: found {len(found)} files *{split}.npz{names}; expected one; use one folder per data "
                "set."
            )
        keys = {"image": "image"} | hierarchy.KEYS
        arrays = read_npz(found[0], [*keys.values()].__contains__, ("image", hierarchy.KEYS["coarse"]), _NPZ)
        columns[split] = {name: arrays[key] for name, key in keys.items() if key in arrays}
    return hierarchy.records_of(columns, dict.fromkeys(hierarchy.KEYS, ()), "coarse", f"npz:{folder}")
