"""Prepared TFDS data sets: read whole into the host's memory, or streamed from their files batch by batch.

TensorFlow reads and decodes on the host's processors only, and is imported by the first call that needs it.
"""

import contextlib
import difflib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from grafit_jax.data import hierarchy
from grafit_jax.errors import UserError

SPLITS = ("train", "test")
_FEATURES = ("image", "label", "coarse_label")
# Decoded in one go where a split is read from end to end.
_READ_BATCH = 1000


class StreamedImages:
    """The images of a split that stay in its files; what an array of them tells of itself, and two ways to read them.

    Attributes:
      shape: (N, H, W, C).
      dtype: uint8.
    """

    def __init__(self, builder, split: str, rows: np.ndarray):
        """The images at the ascending positions `rows`, int [N], of a split's files laid end to end."""
        self._builder, self._split, self._rows = builder, split, rows
        self.shape = (len(rows), *builder.info.features["image"].shape)
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, kept: np.ndarray) -> "StreamedImages":
        """Some of the images, in their order: bool [N]."""
        return StreamedImages(self._builder, self._split, self._rows[np.flatnonzero(kept)])

    def identity(self) -> bytes:
        """What tells them from the images of another data set, without reading them."""
        info = self._builder.info
        split = info.splits[self._split]
        facts = (info.full_name, self._split, split.num_bytes, list(split.shard_lengths))
        return repr(facts).encode() + self._rows.astype("<i8").tobytes()

    def in_order(self, batch_size: int) -> Iterator[np.ndarray]:
        """uint8 [B, H, W, C], every image once in the order of its id; the last batch may be smaller."""
        dataset = self._encoded(self._read(shuffle_seed=None, shard=(0, 1)))
        decoded = self._decoded(dataset).map(lambda id_, image: image)
        yield from decoded.batch(batch_size).prefetch(2).as_numpy_iterator()

    def read(self) -> np.ndarray:
        """All of them, uint8 [N, H, W, C]."""
        return np.concatenate([np.zeros((0, *self.shape[1:]), np.uint8), *self.in_order(_READ_BATCH)])

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
        tf, tfds = _import()
        options = tf.data.Options()
        options.deterministic = True
        config: dict[str, Any] = {"options": options, "add_tfds_id": True, "try_autocache": False}
        if shuffle_seed is None:
            config |= {"interleave_cycle_length": 1}  # one file after the other
        else:
            config |= {"shuffle_seed": shuffle_seed, "shuffle_reshuffle_each_iteration": False}
        index, count = shard
        return self._builder.as_dataset(
            split=tfds.even_splits(self._split, count)[index],
            shuffle_files=shuffle_seed is not None,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(**config),
        )

    def _encoded(self, dataset):
        """(id, encoded image) of the examples that are among `rows`."""
        tf, _ = _import()
        lengths = self._builder.info.splits[self._split].shard_lengths
        first_of_file = tf.constant(np.cumsum([0, *lengths])[:-1])
        id_of_position = np.full(sum(lengths), -1, np.int32)
        id_of_position[self._rows] = np.arange(len(self._rows))
        id_of_position = tf.constant(id_of_position)

        def with_id(example):
            # "NAME-train.tfrecord-00003-of-00010__17": the 18th example of the fourth file.
            numbers = tf.strings.regex_replace(example["tfds_id"], r"^.*-(\d+)-of-\d+__(\d+)$", r"\1 \2")
            file, row = tf.unstack(tf.strings.to_number(tf.strings.split(numbers), tf.int64), 2)
            return id_of_position[first_of_file[file] + row], example["image"]

        return dataset.map(with_id, num_parallel_calls=tf.data.AUTOTUNE).filter(lambda id_, image: id_ >= 0)

    def _decoded(self, dataset):
        tf, _ = _import()
        decode = self._builder.info.features["image"].decode_example
        return dataset.map(lambda id_, image: (id_, decode(image)), num_parallel_calls=tf.data.AUTOTUNE)


def read(
    name: str, data_dir: str | None, coarse_classes: tuple[int, ...], *, stream: bool
) -> tuple[dict[str, dict[str, Any]], tuple[str, ...], tuple[str, ...]]:
    """The columns image, coarse_label and, where there is one, label of each split, and the names of the labels.

    With `stream` the training images are `StreamedImages`, and nothing but their labels is read.
    """
    builder = _builder(name, data_dir)
    features = builder.info.features
    for key in ("image", "coarse_label"):
        if key not in features:
            raise UserError(
                f"tfds:{name} has the features {', '.join(features)} but no {key}: take a data set with image, label "
                "and coarse_label (such as cifar100), or write the labels beside the images as npz (npz:DIR)."
            )
    if None in features["image"].shape:
        raise UserError(
            f"tfds:{name} declares images of shape {features['image'].shape}, want one size: resize them, and declare "
            "it in the builder's tfds.features.Image(shape=...)."
        )
    root = os.fspath(builder.data_dir_root)
    if not builder.is_prepared():
        raise UserError(
            f"tfds:{name} is not prepared in {root}: run `tfds build {name} --data_dir={root}`, or set data.data_dir "
            "to where it is."
        )
    if builder.info.file_format.value == "array_record":
        raise UserError(
            f"tfds:{name} is prepared in {root} as array_record, want tfrecord: run `tfds build {name} "
            "--data_dir=DIR --file_format=tfrecord` with another folder, and set data.data_dir to it."
        )
    missing = [s for s in SPLITS if s not in builder.info.splits]
    if missing:
        raise UserError(
            f"tfds:{name} has the splits {', '.join(builder.info.splits)} but no {missing[0]}: take a data set with "
            "train and test, or write the two as npz (npz:DIR)."
        )
    label_names = tuple(getattr(features["label"], "names", ())) if "label" in features else ()
    coarse_names = tuple(getattr(features["coarse_label"], "names", ()))
    if coarse_names:
        hierarchy.check_classes(coarse_classes, coarse_names)
    columns: dict[str, dict[str, Any]] = {
        split: _columns(builder, split, coarse_classes, with_images=not (stream and split == "train"))
        for split in SPLITS
    }
    return columns, label_names, coarse_names


def _import():
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
    _, tfds = _import()
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


def _columns(builder, split: str, coarse_classes: tuple[int, ...], *, with_images: bool) -> dict[str, Any]:
    """image, coarse_label and, where there is one, label of a split in the order of its files.

    Images of other coarse classes are dropped before they are decoded.
    """
    tf, tfds = _import()
    features = builder.info.features
    options = tf.data.Options()
    options.deterministic = True
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders={"image": tfds.decode.SkipDecoding()},
        # One file after the other: the order does not hang on how many are read at a time.
        read_config=tfds.ReadConfig(options=options, interleave_cycle_length=1, try_autocache=False),
    )
    if coarse_classes and with_images:
        wanted = tf.constant(coarse_classes, tf.int64)
        dataset = dataset.filter(lambda x: tf.reduce_any(tf.cast(x["coarse_label"], tf.int64) == wanted))
    keys = [key for key in _FEATURES if key in features and (with_images or key != "image")]
    decode = {"image": features["image"].decode_example}
    dataset = dataset.map(
        lambda x: {key: decode.get(key, tf.identity)(x[key]) for key in keys}, num_parallel_calls=tf.data.AUTOTUNE
    )
    empty: dict[str, Any] = {key: np.zeros((0,) * (4 if key == "image" else 1), np.uint8) for key in keys}
    batches = [empty, *dataset.batch(_READ_BATCH).as_numpy_iterator()]
    columns = {key: np.concatenate([batch[key] for batch in batches[len(batches) > 1 :]]) for key in keys}
    if with_images:
        return columns
    kept = np.ones(len(columns["coarse_label"]), bool)
    if coarse_classes:
        kept = np.isin(columns["coarse_label"], coarse_classes)
    images = StreamedImages(builder, split, np.flatnonzero(kept))
    return {key: column[kept] for key, column in columns.items()} | {"image": images}
