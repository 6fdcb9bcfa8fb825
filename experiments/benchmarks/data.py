"""Image files to squares of 224 pixels on one core: PIL as `data/images.py` uses it, against tf.data."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image

from benchmarks import timing
from grafit_jax.data import images, tfds_source

_SIZE = 224


def photo(width: int, height: int, seed: int) -> PIL.Image.Image:
    """Smooth shapes with some noise: as many bytes a pixel as photos have."""
    rng = np.random.default_rng(seed)
    shapes = PIL.Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).resize((width, height))
    noise = rng.normal(0, 8, (height, width, 3))
    return PIL.Image.fromarray((np.asarray(shapes) + noise).clip(0, 255).astype(np.uint8))


def _decode(width: int, height: int, count: int) -> dict[str, Any]:
    """`count` JPEGs, one after the other, by one thread each of PIL and of TensorFlow."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(pathlib.Path(folder, f"{i}.jpg")) for i in range(count)]
        for seed, file in enumerate(files):
            photo(width, height, seed).save(file, quality=90)
        kilobytes = sum(pathlib.Path(file).stat().st_size for file in files) / count / 1000

        def ours():
            for file in files:
                images.decode(file, _SIZE)

        dataset = _dataset(files)
        ours_s, peer_s = timing.best([ours, lambda: [*dataset]], 3)
    return {
        "work": f"{count} JPEGs {width} x {height} ({kilobytes:.0f} kB) to {_SIZE} x {_SIZE}, one thread",
        "seconds": ours_s,
        "images_per_second": count / ours_s,
        "peer": "tf.data, one thread",
        "peer_seconds": peer_s,
        "ratio": ours_s / peer_s,
    }


def _dataset(files: list[str]):
    """As `tfds_source` decodes and resizes, in one thread."""
    tf, _ = tfds_source.import_tfds()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1

    def decode(file):
        image = tf.io.decode_jpeg(tf.io.read_file(file), channels=3)
        image = tf.image.resize(image, [_SIZE] * 2, method="bilinear", antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    return tf.data.Dataset.from_tensor_slices(files).map(decode).with_options(options)


def _threads(count: int) -> dict[str, Any]:
    """What all cores of the host bring over one thread."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(pathlib.Path(folder, f"{i}.jpg")) for i in range(count)]
        for seed, file in enumerate(files):
            photo(500, 375, seed).save(file, quality=90)

        def one():
            for file in files:
                images.decode(file, _SIZE)

        threads_s, one_s = timing.best([lambda: [*images.decode_all(files, _SIZE, 64)], one], 3)
    return {
        "work": f"{count} JPEGs 500 x 375 to {_SIZE} x {_SIZE}, all cores",
        "seconds": threads_s,
        "images_per_second": count / threads_s,
        "peer": "one thread",
        "peer_seconds": one_s,
        "ratio": threads_s / one_s,
    }


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    "jpeg_500x375": lambda: _decode(500, 375, 200),
    "jpeg_2000x1500": lambda: _decode(2000, 1500, 20),
    "jpeg_500x375_threads": lambda: _threads(200),
}
