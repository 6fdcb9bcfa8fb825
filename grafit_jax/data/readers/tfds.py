"""Prepared TFDS data sets: read whole into the host's memory, or streamed from their files batch by batch.

TensorFlow reads and decodes on the host's processors only, and is imported by the first call that needs it.
"""

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from grafit_jax.data import hierarchy
from grafit_jax.data.datasets import catalog, taxonomy
from grafit_jax.data.records import READ_BATCH, InFiles, Records
from grafit_jax.data.tensorflow import import_tfds
from grafit_jax.errors import UserError, did_you_mean, warn
from grafit_jax.views.crops import RESIZE_MODES, Crops

SPLITS = ("train", "test")


class StreamedImages(InFiles):
    """The images of a split that stay in TFDS's files."""

    def __init__(
        self, builder, splits: tuple[str, ...], rows: np.ndarray, image_size: int = 0, resize_mode: str = "squash"
    ):
        """The images at the ascending positions `rows`, int [N], of the files of TFDS's `splits` laid end to end."""
        *size, channels = builder.info.features["image"].shape
        super().__init__(rows, channels, image_size, resize_mode, size)
        self._builder, self._splits = builder, {split: builder.info.splits[split] for split in splits}

    def identity(self) -> bytes:
        """TFDS's name with the version, sizes and lengths of the files, and which images of theirs."""
        files = [(name, split.num_bytes, list(split.shard_lengths)) for name, split in self._splits.items()]
        return repr((self._builder.info.full_name, files, self._made)).encode() + self._rows.astype("<i8").tobytes()

    def in_order(self, batch_size: int) -> Iterator[np.ndarray]:
        batches = self._decoded(self._encoded(self._rows), self._square).batch(batch_size)
        return (images for _, images in self._numpy(batches))

    def _epoch(self, made, batch_size, seed, buffer_size, shard, first):
        """Shuffled files are read several at a time, and their images, still encoded, pass through the buffer."""
        index, count = shard
        part = self._rows[index * len(self) // count : (index + 1) * len(self) // count]
        encoded = self._encoded(part, seed)
        encoded = encoded.shuffle(buffer_size, seed=seed, reshuffle_each_iteration=False).skip(first * batch_size)
        return self._numpy(self._decoded(encoded, made).batch(batch_size, drop_remainder=True))

    def _numpy(self, batches: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of a TensorFlow data set, decoded while the devices compute."""
        with self._of_files():
            yield from batches.prefetch(2).as_numpy_iterator()

    @contextlib.contextmanager
    def _of_files(self) -> Iterator[None]:
        """UserError for files that are gone or damaged."""
        tf, _ = import_tfds()
        try:
            yield
        except (tf.errors.OpError, AssertionError, OSError) as error:  # TFDS asserts that it finds them
            raise UserError(
                f"the files of {self._builder.info.full_name} in {self._builder.data_dir} cannot be read any more "
                f"({' '.join(str(error).split())[:200]}): give them back, or prepare the data set again."
            ) from error

    def _encoded(self, rows: np.ndarray, seed: int | None = None):
        """(id, encoded image) of the images at `rows`, in their order or, with a seed, that of shuffled files."""
        tf, _ = import_tfds()
        if not len(rows):  # TFDS refuses to read nothing
            return tf.data.Dataset.from_tensor_slices((np.zeros(0, np.int32), np.zeros(0, str)))
        # From the first to the last of them in each split.
        ranges, first = [], 0
        for name, split in self._splits.items():
            inside = rows[(rows >= first) & (rows < first + split.num_examples)] - first
            if len(inside):
                ranges.append(f"{name}[{inside[0]}:{inside[-1] + 1}]")
            first += split.num_examples
        with self._of_files():
            dataset = _examples(self._builder, "+".join(ranges), seed)

        files = tf.constant([file for split in self._splits.values() for file in split.filenames])
        lengths = [length for split in self._splits.values() for length in split.shard_lengths]
        first_of_file = tf.constant(np.cumsum([0, *lengths])[:-1])
        id_of_position = np.full(sum(lengths), -1, np.int32)
        id_of_position[self._rows] = np.arange(len(self))
        id_of_position = tf.constant(id_of_position)

        def with_id(example):
            # "NAME-train.tfrecord-00003-of-00010__17": the 18th example of that file.
            file, row = (tf.strings.regex_replace(example["tfds_id"], part, "") for part in (r"__\d+$", "^.*__"))
            position = first_of_file[tf.argmax(files == file)] + tf.strings.to_number(row, tf.int64)
            return id_of_position[position], example["image"]

        return dataset.map(with_id, num_parallel_calls=tf.data.AUTOTUNE).filter(lambda id_, image: id_ >= 0)

    def _decoded(self, dataset, made):
        """(id, `made` of id and decoded image)."""
        tf, _ = import_tfds()
        decode = self._builder.info.features["image"].decode_example
        return dataset.map(lambda id_, image: (id_, made(id_, decode(image))), num_parallel_calls=tf.data.AUTOTUNE)

    def _square(self, id_, image):
        """The whole image, uint8 [S, S, C], or as it is."""
        if not self._image_size:
            return image
        whole = RESIZE_MODES[self._resize_mode]
        return _resized(image, id_, lambda id_, height, width: whole(height, width), 1, self._image_size)[0]

    @staticmethod
    def cropped(crops: Crops, seed: int, id_, image):
        """uint8 [T, S, S, C]."""
        count = sum(count for count, *_ in crops.laws)
        return _resized(image, id_, functools.partial(crops.boxes, seed), count, crops.size)


def _resized(image, id_, boxes_of: Callable[[int, int, int], np.ndarray], count: int, size: int):
    """uint8 [count, S, S, C]: parts of an image, bilinear, antialiased; `boxes_of` is of its id, height and width."""
    tf, _ = import_tfds()
    shape = tf.shape(image)
    # By NumPy, so that there is one law of crops.
    boxes = tf.numpy_function(boxes_of, [id_, shape[0], shape[1]], tf.float32, stateful=False)
    boxes = tf.ensure_shape(boxes, [count, 4])
    scale = size / boxes[:, 2:]
    parts = [
        tf.raw_ops.ScaleAndTranslate(
            images=image[None], size=[size, size], scale=s, translation=-b[:2] * s, kernel_type="triangle"
        )
        for s, b in zip(tf.unstack(scale), tf.unstack(boxes), strict=True)
    ]
    return tf.cast(tf.clip_by_value(tf.round(tf.concat(parts, axis=0)), 0, 255), tf.uint8)


def read(
    name: str,
    data_dir: str | None,
    *,
    image_size: int,
    resize_mode: str,
    variant: str,
    train_level: str,
    categories: str,
    coarse_classes: tuple[int, ...],
) -> dict[str, Records]:
    """The records of "train" and "test", of which the labels alone are read: their images are `StreamedImages`."""
    where = f"tfds:{name}"
    builder = _builder(name, data_dir)
    entry = catalog.find(builder.name)
    chosen = entry.variant(variant, where)
    _check(builder, entry, name, image_size)
    features = builder.info.features
    keys = {level: feature for level, feature in entry.levels.items() if feature in features}
    names = {
        level: tuple(getattr(features[keys[level]], "names", None) or ()) if level in keys else ()
        for level in entry.levels
    }
    finest, coarse = entry.finest, entry.coarse
    file = _categories_file(builder, entry, categories, where)
    if file is not None and not file.is_file():
        if train_level != finest or categories or coarse_classes:
            raise UserError(
                f"found no {file}, which the levels above {finest} of {where} are in: put its {taxonomy.FILE} there, "
                f"or set data.inat_categories_file to it, or train on data.train_level={finest}."
            )
        warn(f"{where}: found no {file}, so {finest} is the only level: metrics of the others are left out.")
        file, coarse, names = None, finest, {finest: names[finest]}
    above = entry.above(names[finest], file, where)
    names |= {level: classes.names for level, classes in above.items()}
    hierarchy.check_level(train_level, [level for level in names if level in keys or level in above], coarse, where)
    parts = [_labels(builder, split, keys) for split in entry.tfds_splits]
    columns = {level: np.concatenate([part[level] for part in parts]) for level in keys}
    if above and np.min(columns[finest], initial=0) < 0:
        raise UserError(f"{where} has images without a fine label (-1), want one for each: no coarse label follows.")
    columns |= {level: classes.of_fine[columns[finest]] for level, classes in above.items()}
    if chosen is not None:
        rows = chosen.rows([part[finest] for part in parts], f"{where}, variant {variant or entry.default}")
    else:
        numbers = [sum(builder.info.splits[s].num_examples for s in of_tfds) for of_tfds in entry.splits.values()]
        rows = dict(zip(entry.splits, np.split(np.arange(sum(numbers)), np.cumsum(numbers)[:-1]), strict=True))
    if builder.info.features["image"].shape[:2] == (image_size, image_size):
        image_size = 0  # they have it
    of_splits = {
        split: {level: column[r] for level, column in columns.items()}
        | {"image": StreamedImages(builder, entry.tfds_splits, r, image_size, resize_mode)}
        for split, r in rows.items()
    }
    records = hierarchy.records_of(of_splits, names, coarse, where)
    return records if chosen is None else hierarchy.renumber(records)


def _categories_file(builder, entry: catalog.Entry, categories: str, where: str) -> pathlib.Path | None:
    """Where the levels above the finest are, of a data set that has them in a file of the user's."""
    if entry.taxonomy:
        return pathlib.Path(categories or os.path.join(builder.data_dir_root, builder.name, taxonomy.FILE)).expanduser()
    if categories:
        those = ", ".join(name for name, entry in catalog.CATALOG.items() if entry.taxonomy)
        raise UserError(f"data.inat_categories_file = {categories!r} is for {those}, not for {where}: leave it empty.")
    return None


def _check(builder, entry: catalog.Entry, name: str, image_size: int) -> None:
    """Raises a UserError for a data set that is not there or does not have what is to be read."""
    features = builder.info.features
    optional = () if builder.name in catalog.CATALOG else (entry.levels[entry.finest],)
    for key in ("image", *(feature for feature in entry.levels.values() if feature and feature not in optional)):
        if key not in features:
            raise UserError(
                f"tfds:{name} has the features {', '.join(features)} but no {key}: take a data set with image, label "
                f"and coarse_label (such as cifar100) or one of {', '.join(catalog.CATALOG)}, or write the labels "
                "beside the images as npz (npz:DIR)."
            )
    if None in features["image"].shape and not image_size:
        raise UserError(
            f"tfds:{name} declares images of shape {features['image'].shape}, want one size for all: set "
            "data.image_size to the pixels of a side to resize them to (such as 224)."
        )
    root = os.fspath(builder.data_dir_root)
    if not builder.is_prepared():
        raise _not_prepared(name, entry, root)
    if builder.info.file_format.value == "array_record":
        raise UserError(
            f"tfds:{name} is prepared in {root} as array_record, want tfrecord: run `tfds build {name} "
            "--data_dir=DIR --file_format=tfrecord` with another folder, and set data.data_dir to it."
        )
    missing = [s for s in entry.tfds_splits if s not in builder.info.splits]
    if missing:
        raise UserError(
            f"tfds:{name} has the splits {', '.join(builder.info.splits)} but no {missing[0]}: take a data set with "
            f"{' and '.join(entry.tfds_splits)}, or write the two as npz (npz:DIR)."
        )


def _not_prepared(name: str, entry: catalog.Entry, root: str) -> UserError:
    how = f"tfds build {name} --data_dir={root}"
    if entry.manual:
        how = f"python experiments/prepare.py --dataset={name} --manual_dir=DIR --data_dir={root}"
    return UserError(f"tfds:{name} is not prepared in {root}: run `{how}`, or set data.data_dir to where it is.")


def _builder(name: str, data_dir: str | None):
    """TFDS's builder of a data set, prepared or not."""
    _, tfds = import_tfds()
    folder = os.path.expanduser(data_dir) if data_dir else None
    try:
        return tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        entry = catalog.find(name)
        if entry.manual:  # a builder of ours, which TFDS finds where it is prepared
            raise _not_prepared(name, entry, folder or str(tfds.core.constants.DATA_DIR)) from None
        known = tfds.list_builders(with_community_datasets=False)
        raise UserError(
            f"tfds:{name}: TFDS knows no data set {name}{did_you_mean(name, known)}: want a name from "
            f"`tfds.list_builders()` or one that is prepared in {folder or tfds.core.constants.DATA_DIR}."
        ) from None
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(
            f"tfds:{name} is not to be had ({str(error).splitlines()[0]}): want tfds:NAME, tfds:NAME/CONFIG or "
            "tfds:NAME:VERSION, of those that TFDS has."
        ) from None


def _examples(builder, split: str, seed: int | None = None):
    """The examples of a TFDS split, images encoded, in the order of the files or, with a seed, of shuffled ones."""
    tf, tfds = import_tfds()
    config = tfds.ReadConfig(
        options=tf.data.Options(),
        add_tfds_id=True,
        try_autocache=False,
        shuffle_seed=seed,
        shuffle_reshuffle_each_iteration=False,
    )
    config.options.deterministic = True
    if seed is None:  # one file after the other: the order does not hang on how many are read at a time
        config.interleave_cycle_length = 1
    return builder.as_dataset(
        split=split,
        shuffle_files=seed is not None,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=config,
    )


def _labels(builder, split: str, keys: dict[str, str]) -> dict[str, np.ndarray]:
    """The features `keys` (feature by our name), [N] each, of a TFDS split in the order of its files."""
    dataset = _examples(builder, split).map(lambda x: {key: x[feature] for key, feature in keys.items()})
    batches = list(dataset.batch(READ_BATCH).as_numpy_iterator())
    return {key: np.concatenate([b[key] for b in batches] or [np.zeros(0, np.int64)]) for key in keys}
