"""Small TFDS data sets on disk, and readers of their files."""

import io
import pathlib

import numpy as np
import PIL.Image


def make_builder(
    data_dir, *, shape=(6, 5, 3), withheld=False, coarse=True, splits=("train", "test"), file_format="tfrecord"
):
    """Prepares 90 random images per split in 3 files, with 6 fine classes in 3 coarse ones."""
    import tensorflow_datasets as tfds

    names = {"label": list("abcdef"), "coarse_label": list("xyz")}
    if not coarse:
        del names["coarse_label"]

    def generate(self, split):
        rng = np.random.default_rng(len(split))
        for i in range(90):
            size = (int(rng.integers(4, 9)), 5, 3) if shape[0] is None else shape
            label = {"label": -1 if withheld and split == "test" else i % 6, "coarse_label": i % 6 // 2}
            yield i, {"image": rng.integers(0, 256, size, np.uint8), **{key: label[key] for key in names}}

    def info(self):
        features = {key: tfds.features.ClassLabel(names=n) for key, n in names.items()}
        features |= {"image": tfds.features.Image(shape=shape)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    body = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_generate_examples": generate,
        "_split_generators": lambda self, _: {s: self._generate_examples(s) for s in splits},
    }
    # Not registered, so that it is read from its files, as in another process.
    with tfds.core.registered.skip_registration():
        cls = type("TinyHierarchy", (tfds.core.GeneratorBasedBuilder,), body)
    builder = cls(data_dir=data_dir, file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))


def in_files(folder, name, key, split):
    """Returns an integer feature and the images in file order, read without TFDS."""
    import tensorflow as tf

    files = sorted(map(str, pathlib.Path(folder, name).rglob(f"*-{split}.tfrecord-*")))
    spec = {key: tf.io.FixedLenFeature([], tf.int64), "image": tf.io.FixedLenFeature([], tf.string)}
    rows = [tf.io.parse_single_example(record, spec) for file in files for record in tf.data.TFRecordDataset(file)]
    images = [np.asarray(PIL.Image.open(io.BytesIO(row["image"].numpy()))) for row in rows]
    return np.array([int(row[key]) for row in rows]), images


def prepare(folder, name, examples, config=None, shards=1):
    """Prepares {split: examples} with the features of the TFDS builder `name`."""
    import tensorflow_datasets as tfds

    base = tfds.builder_cls(name)
    body = {
        "__module__": "mock",
        "name": name,
        "pkg_dir_path": getattr(base, "pkg_dir_path", None),
        "_split_generators": lambda self, _: {s: iter(list(enumerate(rows))) for s, rows in examples.items()},
    }
    with tfds.core.registered.skip_registration():
        cls = type("Mock", (base,), body)
    builder = cls(data_dir=folder, file_format="tfrecord", **({"config": config} if config else {}))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
