"""Prepared TFDS data sets, read into host memory or streamed.

TensorFlow is imported on first use, and reads and decodes on the CPU only.
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
    """The images of a split kept in TFDS's files."""

    def __init__(
        self, builder, splits: tuple[str, ...], rows: np.ndarray, image_size: int = 0, resize_mode: str = "squash"
    ):
        """Selects the ascending positions `rows`, int [N], of TFDS's `splits` concatenated, in file order."""
        *size, channels = builder.info.features["image"].shape
        super().__init__(rows, channels, image_size, resize_mode, size)
        self._builder, self._splits = builder, {split: builder.info.splits[split] for split in splits}

    def identity(self) -> bytes:
        """Returns TFDS's name with version, the sizes and lengths of the files, the resizing and the rows."""
        files = [(name, split.num_bytes, list(split.shard_lengths)) for name, split in self._splits.items()]
        parameters = (self._builder.info.full_name, files, self._resizing)
        return repr(parameters).encode() + self._rows.astype("<i8").tobytes()

    def in_order(self, batch_size: int) -> Iterator[np.ndarray]:
        batches = self._decoded(self._encoded(self._rows), self._square).batch(batch_size)
        return (images for _, images in self._numpy(batches))

    def _epoch(self, transform, batch_size, seed, buffer_size, shard, first):
        """Interleaves the shuffled files, and shuffles their encoded images in the buffer."""
        index, count = shard
        part = self._rows[index * len(self) // count : (index + 1) * len(self) // count]
        encoded = self._encoded(part, seed)
        encoded = encoded.shuffle(buffer_size, seed=seed, reshuffle_each_iteration=False).skip(first * batch_size)
        return self._numpy(self._decoded(encoded, transform).batch(batch_size, drop_remainder=True))

    def _numpy(self, batches: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the batches of a tf.data.Dataset with prefetching, so that decoding overlaps with the devices."""
        with self._read_errors():
            yield from batches.prefetch(2).as_numpy_iterator()

    @contextlib.contextmanager
    def _read_errors(self) -> Iterator[None]:
        """Raises UserError for missing or damaged files."""
        tf, _ = import_tfds()
        try:
            yield
        except (tf.errors.OpError, AssertionError, OSError) as error:  # TFDS asserts that its files exist
            raise UserError(
                f"{self._builder.data_dir}: found unreadable files of {self._builder.info.full_name} "
                f"({' '.join(str(error).split())[:200]}); restore them or prepare the data set again."
            ) from error

    def _encoded(self, rows: np.ndarray, seed: int | None = None):
        """Returns a tf.data.Dataset of (id, encoded image) at `rows`, in order or, with a seed, in shuffled files."""
        tf, _ = import_tfds()
        if not len(rows):  # TFDS raises for an empty range
            return tf.data.Dataset.from_tensor_slices((np.zeros(0, np.int32), np.zeros(0, str)))
        # Read the range from the first to the last row in each split.
        ranges, first = [], 0
        for name, split in self._splits.items():
            inside = rows[(rows >= first) & (rows < first + split.num_examples)] - first
            if len(inside):
                ranges.append(f"{name}[{inside[0]}:{inside[-1] + 1}]")
            first += split.num_examples
        with self._read_errors():
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

    def _decoded(self, dataset, transform):
        """Maps (id, encoded image) to (id, transformed image)."""
        tf, _ = import_tfds()
        decode = self._builder.info.features["image"].decode_example
        return dataset.map(lambda id_, image: (id_, transform(id_, decode(image))), num_parallel_calls=tf.data.AUTOTUNE)

    def _square(self, id_, image):
        """Returns the image resized to uint8 [S, S, C], or unchanged for image_size 0."""
        if not self._image_size:
            return image
        boxes = RESIZE_MODES[self._resize_mode]
        return _resized(image, id_, lambda id_, height, width: boxes(height, width), 1, self._image_size)[0]

    @staticmethod
    def cropped(crops: Crops, seed: int, id_, image):
        """Returns crops of the image, uint8 [T, S, S, C]."""
        count = sum(count for count, *_ in crops.distributions)
        return _resized(image, id_, functools.partial(crops.boxes, seed), count, crops.size)


def _resized(image, id_, boxes_of: Callable[[int, int, int], np.ndarray], count: int, size: int):
    """Returns the boxes `boxes_of(id, height, width)` resized to uint8 [count, S, S, C] (bilinear, antialiased)."""
    tf, _ = import_tfds()
    shape = tf.shape(image)
    # Drawn by NumPy, so that all readers share one crop distribution.
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
    coarse_classes: tuple[int | str, ...],
) -> dict[str, Records]:
    """Returns the records of "train" and "test", labels in memory and images as `StreamedImages`."""
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
                f"{where}: found no {file}; expected the {taxonomy.FILE} that defines the levels above {finest}; put "
                f"it there, set data.inat_categories_file to it, or use data.train_level={finest}."
            )
        warn(f"{where}: found no {file}; {finest} is the only level, and there are no metrics of the others.")
        file, coarse, names = None, finest, {finest: names[finest]}
    above = entry.above(names[finest], file, where)
    names |= {level: classes.names for level, classes in above.items()}
    hierarchy.check_level(train_level, [level for level in names if level in keys or level in above], coarse, where)
    parts = [_labels(builder, split, keys) for split in entry.tfds_splits]
    columns = {level: np.concatenate([part[level] for part in parts]) for level in keys}
    if above and np.min(columns[finest], initial=0) < 0:
        raise UserError(f"{where}: found images without a fine label (-1); expected one each to derive the coarse one.")
    columns |= {level: classes.of_fine[columns[finest]] for level, classes in above.items()}
    if chosen is not None:
        rows = chosen.rows([part[finest] for part in parts], f"{where}, variant {variant or entry.default}")
    else:
        lengths = [sum(builder.info.splits[s].num_examples for s in of_tfds) for of_tfds in entry.splits.values()]
        rows = dict(zip(entry.splits, np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1]), strict=True))
    if builder.info.features["image"].shape[:2] == (image_size, image_size):
        image_size = 0  # no resizing needed
    of_splits = {
        split: {level: column[r] for level, column in columns.items()}
        | {"image": StreamedImages(builder, entry.tfds_splits, r, image_size, resize_mode)}
        for split, r in rows.items()
    }
    records = hierarchy.records_of(of_splits, names, coarse, where)
    return records if chosen is None else hierarchy.renumber(records)


def _categories_file(builder, entry: catalog.Entry, categories: str, where: str) -> pathlib.Path | None:
    """Returns the path of categories.json for a data set whose levels it defines, else None."""
    if entry.taxonomy:
        return pathlib.Path(categories or os.path.join(builder.data_dir_root, builder.name, taxonomy.FILE)).expanduser()
    if categories:
        supported = ", ".join(name for name, entry in catalog.CATALOG.items() if entry.taxonomy)
        raise UserError(
            f"found data.inat_categories_file = {categories!r} with {where}; expected it only with {supported}; leave "
            "it empty."
        )
    return None


def _check(builder, entry: catalog.Entry, name: str, image_size: int) -> None:
    """Raises a UserError if the data set is not prepared or lacks a required feature or split."""
    features = builder.info.features
    optional = () if builder.name in catalog.CATALOG else (entry.levels[entry.finest],)
    for key in ("image", *(feature for feature in entry.levels.values() if feature and feature not in optional)):
        if key not in features:
            raise UserError(
                f"tfds:{name}: found the features {', '.join(features)} but no {key}; expected image, label and "
                f"coarse_label (as in cifar100) or one of {', '.join(catalog.CATALOG)}; use another data set, or "
                "write images and labels as npz (npz:DIR)."
            )
    if None in features["image"].shape and not image_size:
        raise UserError(
            f"tfds:{name}: found images of shape {features['image'].shape}; expected one size for all; set "
            "data.image_size to the side in pixels to resize images to (such as 224)."
        )
    root = os.fspath(builder.data_dir_root)
    if not builder.is_prepared():
        raise _not_prepared(name, entry, root)
    if builder.info.file_format.value == "array_record":
        raise UserError(
            f"tfds:{name}: found array_record files in {root}; expected tfrecord; run `tfds build {name} "
            "--data_dir=DIR --file_format=tfrecord` with another folder, and set data.data_dir to it."
        )
    missing = [s for s in entry.tfds_splits if s not in builder.info.splits]
    if missing:
        raise UserError(
            f"tfds:{name}: found the splits {', '.join(builder.info.splits)} but no {missing[0]}; expected "
            f"{' and '.join(entry.tfds_splits)}; use another data set, or write both splits as npz (npz:DIR)."
        )


def _not_prepared(name: str, entry: catalog.Entry, root: str) -> UserError:
    how = f"tfds build {name} --data_dir={root}"
    if entry.manual:
        how = f"python experiments/prepare.py --dataset={name} --manual_dir=DIR --data_dir={root}"
    return UserError(f"tfds:{name}: found no prepared data set in {root}; run `{how}`, or set data.data_dir to it.")


def _builder(name: str, data_dir: str | None):
    """Returns TFDS's builder of a data set, prepared or not."""
    _, tfds = import_tfds(f"tfds:{name}")
    folder = os.path.expanduser(data_dir) if data_dir else None
    try:
        return tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        entry = catalog.find(name)
        if entry.manual:  # not in TFDS's registry: TFDS finds it only once it is prepared
            raise _not_prepared(name, entry, folder or str(tfds.core.constants.DATA_DIR)) from None
        known = tfds.list_builders(with_community_datasets=False)
        raise UserError(
            f"tfds:{name}: found no TFDS data set {name}{did_you_mean(name, known)}; expected a name from "
            f"`tfds.list_builders()` or one prepared in {folder or tfds.core.constants.DATA_DIR}."
        ) from None
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(
            f"tfds:{name}: found no such TFDS data set ({str(error).splitlines()[0]}); expected tfds:NAME, "
            "tfds:NAME/CONFIG or tfds:NAME:VERSION."
        ) from None


def _examples(builder, split: str, seed: int | None = None):
    """Returns the examples of a TFDS split with encoded images, in file order or, with a seed, shuffled by file."""
    tf, tfds = import_tfds()
    config = tfds.ReadConfig(
        options=tf.data.Options(),
        add_tfds_id=True,
        try_autocache=False,
        shuffle_seed=seed,
        shuffle_reshuffle_each_iteration=False,
    )
    config.options.deterministic = True
    if seed is None:  # read the files one after the other, so that the order is that of the files
        config.interleave_cycle_length = 1
    return builder.as_dataset(
        split=split,
        shuffle_files=seed is not None,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=config,
    )


def _labels(builder, split: str, keys: dict[str, str]) -> dict[str, np.ndarray]:
    """Returns the labels of a TFDS split by level, [N] each, in file order; `keys` maps levels to features."""
    dataset = _examples(builder, split).map(lambda x: {key: x[feature] for key, feature in keys.items()})
    batches = list(dataset.batch(READ_BATCH).as_numpy_iterator())
    return {key: np.concatenate([b[key] for b in batches] or [np.zeros(0, np.int64)]) for key in keys}
