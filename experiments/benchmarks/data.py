"""JPEGs to crops of 224 pixels on the host: as own images are read (PIL), and as TFDS's are (tf.data)."""

import contextlib
import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image

from benchmarks import timing
from grafit_jax.data.readers import decode as images
from grafit_jax.data.readers import tfds
from grafit_jax.data.tensorflow import import_tfds
from grafit_jax.views.crops import Crops

_SIZE = 224
_LAW = ((0.2, 1.0), (3 / 4, 4 / 3))


def photo(width: int, height: int, seed: int) -> PIL.Image.Image:
    """Smooth shapes with some noise: as many bytes a pixel as photos have."""
    rng = np.random.default_rng(seed)
    shapes = PIL.Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).resize((width, height))
    noise = rng.normal(0, 8, (height, width, 3))
    return PIL.Image.fromarray((np.asarray(shapes) + noise).clip(0, 255).astype(np.uint8))


@contextlib.contextmanager
def _photos(width: int, height: int, count: int) -> Iterator[tuple[list[str], str]]:
    """The files of some photos, and what they are in words."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(pathlib.Path(folder, f"{i}.jpg")) for i in range(count)]
        for seed, file in enumerate(files):
            photo(width, height, seed).save(file, quality=90)
        kilobytes = sum(pathlib.Path(file).stat().st_size for file in files) / count / 1000
        yield files, f"{count} JPEGs {width} x {height} ({kilobytes:.0f} kB)"


def _cropped(file: str, row: int, crops: Crops) -> np.ndarray:
    return images.decode_boxes(file, crops.size, functools.partial(crops.boxes, 0, row))


def _compared(count: int, work: str, ours: Callable[[], Any], peer: str, theirs: Callable[[], Any]) -> dict[str, Any]:
    ours_s, peer_s = timing.best([ours, theirs], 3)
    return {
        "work": work,
        "seconds": ours_s,
        "images_per_second": count / ours_s,
        "peer": peer,
        "peer_seconds": peer_s,
        "ratio": ours_s / peer_s,
    }


def _crops(width: int, height: int, count: int, num_views: int) -> dict[str, Any]:
    """T crops of one decode, by one thread each of PIL and of TensorFlow."""
    crops = Crops(_SIZE, ((num_views, *_LAW),))
    with _photos(width, height, count) as (files, what):
        dataset = _dataset(files, crops)
        return _compared(
            count,
            f"{what} to {num_views} crops of {_SIZE} px each, PIL, one thread",
            lambda: [_cropped(file, row, crops) for row, file in enumerate(files)],
            "tf.data, one thread",
            lambda: [*dataset],
        )


def _dataset(files: list[str], crops: Crops):
    """As `readers.tfds` decodes and crops, in one thread."""
    tf, _ = import_tfds()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1

    def decode(row, file):
        return tfds.StreamedImages.cropped(crops, 0, row, tf.io.decode_jpeg(tf.io.read_file(file), channels=3))

    dataset = tf.data.Dataset.from_tensor_slices((np.arange(len(files)), files))
    return dataset.map(decode).with_options(options)


def _decodes(count: int, num_views: int) -> dict[str, Any]:
    """What it brings that the crops of an image come from one decode of it."""
    together, alone = (Crops(_SIZE, ((n, *_LAW),)) for n in (num_views, 1))
    with _photos(500, 375, count) as (files, what):
        return _compared(
            count,
            f"{what} to {num_views} crops of one decode, PIL, one thread",
            lambda: [_cropped(file, row, together) for row, file in enumerate(files)],
            "a decode for each crop",
            lambda: [_cropped(file, row, alone) for row, file in enumerate(files) for _ in range(num_views)],
        )


def _threads(count: int, num_views: int) -> dict[str, Any]:
    """What all cores of the host bring over one thread."""
    crops = Crops(_SIZE, ((num_views, *_LAW),))
    with _photos(500, 375, count) as (files, what):
        decoders = [functools.partial(_cropped, file, row, crops) for row, file in enumerate(files)]
        return _compared(
            count,
            f"{what} to {num_views} crops, PIL, all cores",
            lambda: [*images.decode_all(decoders, 64)],
            "one thread",
            lambda: [decode() for decode in decoders],
        )


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    "jpeg_500x375_1": lambda: _crops(500, 375, 200, 1),
    "jpeg_500x375_4": lambda: _crops(500, 375, 200, 4),
    "jpeg_2000x1500_4": lambda: _crops(2000, 1500, 20, 4),
    "jpeg_one_decode": lambda: _decodes(200, 4),
    "jpeg_threads": lambda: _threads(200, 4),
}
