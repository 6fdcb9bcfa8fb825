"""Prepared TFDS data sets: read whole into the host's memory, or streamed from their files batch by batch.

TensorFlow reads and decodes on the host's processors only, and is imported by the first call that needs it.
"""

import contextlib
import difflib
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from grafit_jax.data import hierarchy
from grafit_jax.data.datasets import catalog, taxonomy
from grafit_jax.data.tensorflow import import_tfds
from grafit_jax.errors import UserError, warn
from grafit_jax.views.crops import RESIZE_MODES, Crops

SPLITS = ("train", "test")
# Read in one go where a split is read from end to end.
_READ_BATCH = 500


class StreamedImages:
    """The images of a split that stay in their files; what an array of them tells of itself, and ways to read them.

    Attributes:
      shape: (N, H, W, C).
      dtype: uint8.
    """

    def __init__(
        self, builder, splits: tuple[str, ...], rows: np.ndarray, image_size: int = 0, resize_mode: str = "squash"
    ):
        """The images at the ascending positions `rows`, int [N], of the files of TFDS's `splits` laid end to end.

        With image_size S > 0 each of them is resized to S x S pixels, made square by one of
        `crops.RESIZE_MODES`.
        """
        self._builder, self._splits, self._rows, self._image_size, self._resize_mode = (
            builder,
            splits,
            rows,
            image_size,
            resize_mode,
        )
        *size, channels = builder.info.features["image"].shape
        self.shape = (len(rows), *([image_size] * 2 if image_size else size), channels)
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, kept: np.ndarray) -> "StreamedImages":
        """Some of the images, in their order: bool [N]."""
        rows = self._rows[np.flatnonzero(kept)]
        return StreamedImages(self._builder, self._splits, rows, self._image_size, self._resize_mode)

    def identity(self) -> bytes:
        """What tells them from the images of another data set, without reading them."""
        info = self._builder.info
        splits = [(s, info.splits[s].num_bytes, list(info.splits[s].shard_lengths)) for s in self._splits]
        made = (self._image_size, self._resize_mode) if self._resize_mode != "squash" else self._image_size
        return repr((info.full_name, splits, made)).encode() + self._rows.astype("<i8").tobytes()

    def in_order(self, batch_size: int) -> Iterator[np.ndarray]:
        """uint8 [B, H, W, C], every image once in the order of its id; the last batch may be smaller."""
        dataset = self._encoded(self._read(self._rows))
        decoded = self._decoded(dataset, self._squared).map(lambda id_, image: image)
        yield from self._whole(decoded.batch(batch_size).prefetch(2))

    def read(self) -> np.ndarray:
        """All of them, uint8 [N, H, W, C]."""
        images, start = np.empty(self.shape, np.uint8), 0
        for batch in self.in_order(_READ_BATCH):
            images[start : start + len(batch)] = batch
            start += len(batch)
        assert start == len(images), f"{start} of {len(images)} images in the files"
        return images

    def shuffled(
        self,
        batch_size: int,
        *,
        seed: int,
        buffer_size: int,
        shard: tuple[int, int] = (0, 1),
        crops: Crops | None = None,
        first: int = 0,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch as (id int32 [B], image uint8 [B, H, W, C]), in an order that `seed` alone decides.

        Files are taken in a shuffled order, several at a time, and their images, still encoded, pass through a shuffle
        buffer. Images past the last full batch are left out.

        Args:
          batch_size: B, of this host.
          seed: of the epoch.
          buffer_size: images in the shuffle buffer.
          shard: (i, n): the i-th of n parts of the images, as alike in size as can be: those of one host.
          first: batches to leave out at the beginning, which are not decoded.
          crops: gives crops of the images as they are in the files instead, uint8 [B, T, S, S, C].
        """
        index, count = shard
        part = self._rows[index * len(self) // count : (index + 1) * len(self) // count]
        dataset = self._encoded(self._read(part, shuffle_seed=seed))
        dataset = dataset.shuffle(buffer_size, seed=seed, reshuffle_each_iteration=False).skip(first * batch_size)
        made = self._squared if crops is None else functools.partial(cropped, crops, seed)
        batches = self._decoded(dataset, made).batch(batch_size, drop_remainder=True)
        # Decoding goes on while the devices work.
        yield from self._whole(batches.prefetch(2))

    def _whole(self, dataset: Any) -> Iterator[Any]:
        with self._of_files():
            yield from dataset.as_numpy_iterator()

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

    def _read(self, rows: np.ndarray, *, shuffle_seed: int | None = None):
        """Examples with their images encoded and their TFDS ids: from the first to the last of `rows` in each split."""
        tf, tfds = import_tfds()
        options = tf.data.Options()
        options.deterministic = True
        config: dict[str, Any] = {"options": options, "add_tfds_id": True, "try_autocache": False}
        if shuffle_seed is None:
            config |= {"interleave_cycle_length": 1}  # one file after the other
        else:
            config |= {"shuffle_seed": shuffle_seed, "shuffle_reshuffle_each_iteration": False}
        ranges, first = [], 0
        for split, lengths in zip(self._splits, self._shard_lengths(), strict=True):
            inside = rows[(rows >= first) & (rows < first + sum(lengths))] - first
            if len(inside):
                ranges.append(f"{split}[{inside[0]}:{inside[-1] + 1}]")
            first += sum(lengths)
        with self._of_files():
            return self._builder.as_dataset(
                split="+".join(ranges or [f"{self._splits[0]}[:0]"]),
                shuffle_files=shuffle_seed is not None,
                decoders={"image": tfds.decode.SkipDecoding()},
                read_config=tfds.ReadConfig(**config),
            )

    def _shard_lengths(self) -> list[list[int]]:
        """The numbers of images in the files of each split."""
        return [list(self._builder.info.splits[split].shard_lengths) for split in self._splits]

    def _encoded(self, dataset):
        """(id, encoded image) of the examples that are among `rows`."""
        tf, _ = import_tfds()
        lengths = self._shard_lengths()
        splits = tf.constant(self._splits)
        first_file = tf.constant(np.cumsum([0, *map(len, lengths)])[:-1])  # of every split
        first_of_file = tf.constant(np.cumsum([0, *itertools.chain(*lengths)])[:-1])
        id_of_position = np.full(sum(map(sum, lengths)), -1, np.int32)
        id_of_position[self._rows] = np.arange(len(self._rows))
        id_of_position = tf.constant(id_of_position)

        def with_id(example):
            # "NAME-train.tfrecord-00003-of-00010__17": the 18th example of the fourth file of train.
            id_ = tf.strings.regex_replace(example["tfds_id"], r"^.*-(\w+)\.\w+-(\d+)-of-\d+__(\d+)$", r"\1 \2 \3")
            split, file, row = tf.unstack(tf.strings.split(id_), 3)
            file = first_file[tf.argmax(splits == split)] + tf.strings.to_number(file, tf.int64)
            return id_of_position[first_of_file[file] + tf.strings.to_number(row, tf.int64)], example["image"]

        return dataset.map(with_id, num_parallel_calls=tf.data.AUTOTUNE).filter(lambda id_, image: id_ >= 0)

    def _decoded(self, dataset, made):
        """(id, `made` of id and decoded image)."""
        tf, _ = import_tfds()
        decode = self._builder.info.features["image"].decode_example
        return dataset.map(lambda id_, image: (id_, made(id_, decode(image))), num_parallel_calls=tf.data.AUTOTUNE)

    def _squared(self, id_, image):
        """The whole image, uint8 [S, S, C], or as it is."""
        if not self._image_size:
            return image
        return _resized(
            image, _boxes(lambda id_, *shape: RESIZE_MODES[self._resize_mode](*shape), id_, image, 1), self._image_size
        )[0]


def cropped(crops: Crops, seed: int, id_, image):
    """uint8 [T, S, S, C]."""
    boxes = _boxes(functools.partial(crops.boxes, seed), id_, image, sum(count for count, *_ in crops.laws))
    return _resized(image, boxes, crops.size)


def _boxes(of: Callable[[int, int, int], np.ndarray], id_, image, count: int):
    """float32 [count, 4] of (id, height, width), by NumPy, so that there is one law of crops."""
    tf, _ = import_tfds()
    shape = tf.shape(image)
    return tf.ensure_shape(tf.numpy_function(of, [id_, shape[0], shape[1]], tf.float32, stateful=False), [count, 4])


def _resized(image, boxes, size: int):
    """uint8 [n, S, S, C]: the parts of an image, bilinear and antialiased."""
    tf, _ = import_tfds()
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
    coarse_classes: tuple[int, ...],
    *,
    stream: bool,
    image_size: int,
    resize_mode: str,
    variant: str,
    train_level: str,
    categories: str,
) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[str, ...]], str]:
    """What each split holds: the column image, and one of labels for each level that has some.

    The labels are read first, and then the images that are kept, and no other is decoded. With `stream` the training
    images are `StreamedImages`, and nothing but their labels is read.

    Returns:
      split -> column -> array; the names of the labels of every level, from coarse to fine; the coarse level.
    """
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
    if names[coarse]:
        hierarchy.check_classes(coarse_classes, names[coarse])

    parts = [_labels(builder, split, keys) for split in entry.tfds_splits]
    columns = {level: np.concatenate([part[level] for part in parts]) for level in keys}
    if above and np.min(columns[finest], initial=0) < 0:
        raise UserError(f"{where} has images without a fine label (-1), want one for each: no coarse label follows.")
    columns |= {level: classes.of_fine[columns[finest]] for level, classes in above.items()}
    ends = np.cumsum([0, *(builder.info.splits[split].num_examples for split in entry.tfds_splits)])
    rows, first = {}, 0
    for split, of_tfds in entry.splits.items():
        rows[split] = np.arange(ends[first], ends[first + len(of_tfds)])
        first += len(of_tfds)
    if chosen is not None:
        rows = chosen.rows([part[finest] for part in parts], f"{where}, variant {variant or entry.default}")
        _renumber(columns, np.concatenate(list(rows.values())), names)
    if coarse_classes:
        rows = {split: r[np.isin(columns[coarse][r], coarse_classes)] for split, r in rows.items()}
    if builder.info.features["image"].shape[:2] == (image_size, image_size):
        image_size = 0  # they have it
    result: dict[str, dict[str, Any]] = {}
    for split, r in rows.items():
        images = StreamedImages(builder, entry.tfds_splits, r, image_size, resize_mode)
        of_split = {level: column[r] for level, column in columns.items()}
        result[split] = of_split | {"image": images if stream and split == "train" else images.read()}
    return result, names, coarse


def _categories_file(builder, entry: catalog.Entry, categories: str, where: str) -> pathlib.Path | None:
    """Where the levels above the finest are, of a data set that has them in a file of the user's."""
    if entry.taxonomy:
        return pathlib.Path(categories or os.path.join(builder.data_dir_root, builder.name, taxonomy.FILE)).expanduser()
    if categories:
        those = ", ".join(name for name, entry in catalog.CATALOG.items() if entry.taxonomy)
        raise UserError(f"data.inat_categories_file = {categories!r} is for {those}, not for {where}: leave it empty.")
    return None


def _renumber(columns: dict[str, np.ndarray], rows: np.ndarray, names: dict[str, tuple[str, ...]]) -> None:
    """Numbers the classes that have images among `rows` from 0, level by level, in place."""
    for level, column in columns.items():
        present = np.unique(column[rows])
        columns[level] = np.searchsorted(present, column)
        names[level] = tuple(names[level][c] for c in present) if names[level] else ()


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
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"tfds:{name}: TFDS knows no data set {name}{hint}: want a name from `tfds.list_builders()` or one that is "
            f"prepared in {folder or tfds.core.constants.DATA_DIR}."
        ) from None
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(
            f"tfds:{name} is not to be had ({str(error).splitlines()[0]}): want tfds:NAME, tfds:NAME/CONFIG or "
            "tfds:NAME:VERSION, of those that TFDS has."
        ) from None


def _labels(builder, split: str, keys: dict[str, str]) -> dict[str, np.ndarray]:
    """The features `keys` (feature by our name), [N] each, of a TFDS split in the order of its files."""
    tf, tfds = import_tfds()
    options = tf.data.Options()
    options.deterministic = True
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders={"image": tfds.decode.SkipDecoding()},
        # One file after the other: the order does not hang on how many are read at a time.
        read_config=tfds.ReadConfig(options=options, interleave_cycle_length=1, try_autocache=False),
    )
    dataset = dataset.map(lambda x: {key: x[feature] for key, feature in keys.items()})
    batches = list(dataset.batch(_READ_BATCH).as_numpy_iterator())
    return {key: np.concatenate([b[key] for b in batches] or [np.zeros(0, np.int64)]) for key in keys}
