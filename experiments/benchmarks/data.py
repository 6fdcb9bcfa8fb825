"""Decoding JPEGs to crops of 224 pixels on the host, as own images are read, beside torchvision and tf.data."""

import functools
import importlib.util
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image

from benchmarks import timing
from grafit_jax.data.readers import decode as images
from grafit_jax.data.readers import tfds
from grafit_jax.data.tensorflow import import_tfds
from grafit_jax.views.crops import Crops

_CROPS = {num_views: Crops(224, ((num_views, (0.2, 1.0), (3 / 4, 4 / 3)),)) for num_views in (1, 4)}


def photo(width: int, height: int, seed: int) -> PIL.Image.Image:
    """Returns smooth shapes with noise, with as many JPEG bytes per pixel as a photo."""
    rng = np.random.default_rng(seed)
    shapes = PIL.Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).resize((width, height))
    noise = rng.normal(0, 8, (height, width, 3))
    return PIL.Image.fromarray((np.asarray(shapes) + noise).clip(0, 255).astype(np.uint8))


def _compared(
    work: str,
    calls: Callable[[list[str]], dict[str, Callable[[], Any]]],
    *,
    width: int = 500,
    height: int = 375,
    count: int = 200,
) -> dict[str, Any]:
    """Times calls that `calls` makes from the files of `count` photos: ours, and peers, of which the fastest counts."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(pathlib.Path(folder, f"{i}.jpg")) for i in range(count)]
        for seed, file in enumerate(files):
            photo(width, height, seed).save(file, quality=90)
        kilobytes = sum(pathlib.Path(file).stat().st_size for file in files) / count / 1000
        named = calls(files)
        ours_s, *theirs_s = timing.best([*named.values()], 3)
    peer_s, peer = min(zip(theirs_s, [*named][1:], strict=True))
    work = f"{count} JPEGs {width} x {height} ({kilobytes:.0f} kB) to {work}"
    return timing.line(work, ours_s, peer, peer_s, images_per_second=count / ours_s)


def _decoders(files: list[str], num_views: int) -> list[Callable[[], np.ndarray]]:
    """Returns a function for each photo that decodes it once and cuts T crops."""
    crops = _CROPS[num_views]
    return [
        functools.partial(images.decode_boxes, file, crops.size, functools.partial(crops.boxes, 0, row))
        for row, file in enumerate(files)
    ]


def _one_thread(decoders: list[Callable[[], np.ndarray]], times: int = 1) -> Callable[[], Any]:
    return lambda: [decode() for decode in decoders for _ in range(times)]


def _dataset(files: list[str], num_views: int):
    """Returns a call that decodes and crops as `readers.tfds` does, in one thread."""
    tf, _ = import_tfds()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1

    def decode(row, file):
        image = tf.io.decode_jpeg(tf.io.read_file(file), channels=3)
        return tfds.StreamedImages.cropped(_CROPS[num_views], 0, row, image)

    dataset = tf.data.Dataset.from_tensor_slices((np.arange(len(files)), files)).map(decode).with_options(options)
    return lambda: [*dataset]


def _torchvision(files: list[str], num_views: int, *, tensors: bool) -> Callable[[], Any]:
    """Returns a call that decodes each photo once and cuts T random crops, as PIL images or as tensors."""
    import torch
    import torchvision.io
    import torchvision.transforms.v2 as transforms

    torch.set_num_threads(1)
    crop = transforms.RandomResizedCrop(224, (0.2, 1.0), antialias=True)

    def decode(file):
        image = torchvision.io.decode_image(file) if tensors else PIL.Image.open(file).convert("RGB")
        return [np.asarray(crop(image)) for _ in range(num_views)]

    return lambda: [decode(file) for file in files]


def crops(num_views: int, **photos: int) -> dict[str, Any]:
    """Measures T crops from one decode, in one thread."""

    def calls(files):
        named = {"ours": _one_thread(_decoders(files, num_views))}
        if importlib.util.find_spec("torchvision"):  # before TensorFlow: the other order crashes
            for kind, tensors in (("PIL images", False), ("tensors", True)):
                named[f"torchvision of {kind}, one thread"] = _torchvision(files, num_views, tensors=tensors)
        return named | {"tf.data, one thread": _dataset(files, num_views)}

    return _compared(f"{num_views} crops of 224 px each, one thread", calls, **photos)


def one_decode() -> dict[str, Any]:
    """Measures the gain of cutting all crops of an image from one decode."""
    return _compared(
        "4 crops of one decode, one thread",
        lambda files: {
            "ours": _one_thread(_decoders(files, 4)),
            "a decode for each crop": _one_thread(_decoders(files, 1), 4),
        },
    )


def threads() -> dict[str, Any]:
    """Measures the gain of all cores over one thread."""

    def calls(files):
        decoders = _decoders(files, 4)
        return {"ours": lambda: [*images.decode_all(decoders, 64)], "one thread": _one_thread(decoders)}

    return _compared("4 crops, all cores", calls)


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    "jpeg_500x375_1": lambda: crops(1),
    "jpeg_500x375_4": lambda: crops(4),
    "jpeg_2000x1500_4": lambda: crops(4, width=2000, height=1500, count=20),
    "jpeg_one_decode": one_decode,
    "jpeg_threads": threads,
}
