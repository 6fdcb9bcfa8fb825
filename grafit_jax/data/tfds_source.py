"""Prepared TFDS data sets: read whole into the host's memory, or streamed from their files batch by batch.

TensorFlow reads and decodes on the host's processors only, and is imported by the first call that needs it.
"""

import contextlib
import difflib
import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from grafit_jax.data import catalog, hierarchy
from grafit_jax.errors import UserError

SPLITS = ("train", "test")
# Read in one go where a split is read from end to end.
_READ_BATCH = 500


class StreamedImages:
    """The images of a split that stay in their files; what an array of them tells of itself, and ways to read them.

    Attributes:
      shape: (N, H, W, C).
      dtype: uint8.
    """

    def __init__(self, builder, splits: tuple[str, ...], rows: np.ndarray, image_size: int = 0):
        """The images at the ascending positions `rows`, int [N], of the files of TFDS's `splits` laid end to end.

        With image_size S > 0 each of them is resized, as a whole, to S x S pixels.
        """
        self._builder, self._splits, self._rows, self._image_size = builder, splits, rows, image_size
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
        return StreamedImages(self._builder, self._splits, self._rows[np.flatnonzero(kept)], self._image_size)

    def identity(self) -> bytes:
        """What tells them from the images of another data set, without reading them."""
        info = self._builder.info
        splits = [(s, info.splits[s].num_bytes, list(info.splits[s].shard_lengths)) for s in self._splits]
        return repr((info.full_name, splits, self._image_size)).encode() + self._rows.astype("<i8").tobytes()

    def in_order(self, batch_size: int) -> Iterator[np.ndarray]:
        """uint8 [B, H, W, C], every image once in the order of its id; the last batch may be smaller."""
        dataset = self._encoded(self._read(shuffle_seed=None, shard=(0, 1)))
        decoded = self._decoded(dataset).map(lambda id_, image: image)
        yield from decoded.batch(batch_size).prefetch(2).as_numpy_iterator()

    def read(self) -> np.ndarray:
        """All of them, uint8 [N, H, W, C]."""
        images, start = np.empty(self.shape, np.uint8), 0
        for batch in self.in_order(_READ_BATCH):
            images[start : start + len(batch)] = batch
            start += len(batch)
        assert start == len(images), f"{start} of {len(images)} images in the files"
        return images

    def shuffled(
        self, batch_size: int, *, seed: int, buffer_size: int, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch as (id int32 [B], image uint8 [B, H, W, C]), in an order that `seed` alone decides.

        Files are taken in a shuffled order, several at a time, and their images, still encoded, pass through a shuffle
        buffer. Images past the last full batch are left out.

        Args:
          batch_size: B, of this host.
          seed: of the epoch.
          buffer_size: images in the shuffle buffer.
          shard: (i, n): the i-th of n parts of the split, as alike in size as can be: those of one host.
        """
        dataset = self._encoded(self._read(shuffle_seed=seed, shard=shard))
        dataset = dataset.shuffle(buffer_size, seed=seed, reshuffle_each_iteration=False)
        batches = self._decoded(dataset).batch(batch_size, drop_remainder=True)
        # Decoding goes on while the devices work.
        yield from batches.prefetch(2).as_numpy_iterator()

    def _read(self, *, shuffle_seed: int | None, shard: tuple[int, int]):
        """Examples with their images encoded and their TFDS ids."""
        tf, tfds = import_tfds()
        options = tf.data.Options()
        options.deterministic = True
        config: dict[str, Any] = {"options": options, "add_tfds_id": True, "try_autocache": False}
        if shuffle_seed is None:
            config |= {"interleave_cycle_length": 1}  # one file after the other
        else:
            config |= {"shuffle_seed": shuffle_seed, "shuffle_reshuffle_each_iteration": False}
        index, count = shard
        ends = np.searchsorted(self._rows, np.cumsum([sum(lengths) for lengths in self._shard_lengths()]))
        # The files of splits without any of the images stay closed.
        used = [s for s, images in zip(self._splits, np.diff(ends, prepend=0), strict=True) if images]
        return self._builder.as_dataset(
            split=tfds.even_splits("+".join(used or self._splits), count)[index],
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

    def _decoded(self, dataset):
        tf, _ = import_tfds()
        decode = self._builder.info.features["image"].decode_example

        def decoded(id_, image):
            image = decode(image)
            if self._image_size:
                image = tf.image.resize(image, [self._image_size] * 2, method="bilinear", antialias=True)
                image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
            return id_, image

        return dataset.map(decoded, num_parallel_calls=tf.data.AUTOTUNE)


def read(
    name: str, data_dir: str | None, coarse_classes: tuple[int, ...], *, stream: bool, image_size: int, variant: str
) -> tuple[dict[str, dict[str, Any]], tuple[str, ...], tuple[str, ...]]:
    """The columns image, coarse_label and, where there is one, label of each split, and the names of the labels.

    The labels are read first, and then the images that are kept, and no other is decoded. With `stream` the training
    images are `StreamedImages`, and nothing but their labels is read.
    """
    where = f"tfds:{name}"
    builder = _builder(name, data_dir)
    entry = catalog.find(builder.name)
    chosen = entry.variant(variant, where)
    _check(builder, entry, name, image_size)
    features = builder.info.features
    keys = {"label": entry.label, "coarse_label": entry.coarse_label}
    keys = {key: feature for key, feature in keys.items() if feature in features}
    label_names, coarse_names = (
        tuple(getattr(features[feature], "names", None) or ()) if feature in features else ()
        for feature in (entry.label, entry.coarse_label)
    )
    table = catalog.load_hierarchy(entry.hierarchy) if entry.hierarchy else None
    if table is not None:
        coarse_names = table.coarse_names
    if coarse_names:
        hierarchy.check_classes(coarse_classes, coarse_names)

    parts = [_labels(builder, split, keys) for split in entry.splits]
    columns = {key: np.concatenate([part[key] for part in parts]) for key in keys}
    if table is not None:
        columns["coarse_label"] = table.coarse(columns["label"], label_names, where)
    ends = np.cumsum([0, *(builder.info.splits[split].num_examples for split in entry.splits)])
    rows = {split: np.arange(ends[i], ends[i + 1]) for i, split in enumerate(SPLITS)}
    if chosen is not None:
        rows = chosen.rows([part["label"] for part in parts], f"{where}, variant {variant}")
        label_names = _renumber(columns, np.concatenate(list(rows.values())), label_names)
    if coarse_classes:
        rows = {split: r[np.isin(columns["coarse_label"][r], coarse_classes)] for split, r in rows.items()}
    if builder.info.features["image"].shape[:2] == (image_size, image_size):
        image_size = 0  # they have it
    result: dict[str, dict[str, Any]] = {}
    for split, r in rows.items():
        images = StreamedImages(builder, entry.splits, r, image_size)
        of_split = {key: column[r] for key, column in columns.items()}
        result[split] = of_split | {"image": images if stream and split == "train" else images.read()}
    return result, label_names, coarse_names


def _renumber(columns: dict[str, np.ndarray], rows: np.ndarray, label_names: tuple[str, ...]) -> tuple[str, ...]:
    """Numbers the fine classes that have images among `rows` from 0, in place, and returns their names."""
    classes = np.unique(columns["label"][rows])
    columns["label"] = np.searchsorted(classes, columns["label"])
    return tuple(label_names[c] for c in classes) if label_names else ()


def _check(builder, entry: catalog.Entry, name: str, image_size: int) -> None:
    """Raises a UserError for a data set that is not there or does not have what is to be read."""
    features = builder.info.features
    known = builder.name in catalog.CATALOG
    wanted = ["image", *([entry.label] if known else []), *([] if entry.hierarchy else [entry.coarse_label])]
    for key in wanted:
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
        how = f"tfds build {name} --data_dir={root}"
        if builder.name == "cars196":  # TFDS's download is gone
            how = f"python experiments/prepare.py --dataset=cars196 --manual_dir=DIR --data_dir={root}"
        raise UserError(f"tfds:{name} is not prepared in {root}: run `{how}`, or set data.data_dir to where it is.")
    if builder.info.file_format.value == "array_record":
        raise UserError(
            f"tfds:{name} is prepared in {root} as array_record, want tfrecord: run `tfds build {name} "
            "--data_dir=DIR --file_format=tfrecord` with another folder, and set data.data_dir to it."
        )
    missing = [s for s in entry.splits if s not in builder.info.splits]
    if missing:
        raise UserError(
            f"tfds:{name} has the splits {', '.join(builder.info.splits)} but no {missing[0]}: take a data set with "
            f"{' and '.join(entry.splits)}, or write the two as npz (npz:DIR)."
        )


def import_tfds():
    """TensorFlow and TFDS."""
    # TensorFlow only decodes images here; the first setting silences its start, the second one a remark about oneDNN.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.get_logger().setLevel("ERROR")  # TFDS's ids use something that TensorFlow calls deprecated
    # The accelerators are JAX's. Refused where TensorFlow is at work already: then it has taken what it takes.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")

    return tf, tfds


def _builder(name: str, data_dir: str | None):
    """TFDS's builder of a data set, prepared or not."""
    _, tfds = import_tfds()
    folder = os.path.expanduser(data_dir) if data_dir else None
    try:
        return tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
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
