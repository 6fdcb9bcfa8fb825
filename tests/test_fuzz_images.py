"""Fuzz tests of image decoding: damaged files give pixels, or an `Unreadable` that names the file."""

import functools

import numpy as np
import PIL.Image
import pytest
from hypothesis import strategies as st

from grafit_jax.data.readers import decode
from grafit_jax.data.readers.decode import Unreadable
from grafit_jax.views import crops
from helpers import fuzzing, image_files

CROPS = crops.Crops(4, ((2, (0.05, 1.0), (0.5, 2.0)), (1, (1, 1), (1, 1))))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6000), (6000, 1), (3, 2000)])
def test_images_of_extreme_shapes_are_cropped(tmp_path, height, width):
    pixels = np.full((height, width, 3), 77, np.uint8)
    for name in ("i.png", "i.jpg"):
        path = image_files.write(tmp_path / name, pixels)
        for id_ in range(5):
            made = decode.decode_boxes(path, 4, functools.partial(CROPS.boxes, 0, id_))
            assert made.shape == (3, 4, 4, 3) and np.abs(made.astype(int) - 77).max() <= 2


@pytest.mark.parametrize("name", ["i.jpg", "i.png", "i.tif", "i.gif", "i.webp", "i.bmp", "i.ppm"])
def test_a_damaged_image_is_cropped_or_unreadable(times, tmp_path, name):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / name
    image_files.write(path, image_files.pixels(0, 40, 30), **({} if name == "i.ppm" else {"exif": exif}))

    def check(drawn):
        data, id_ = drawn
        path.write_bytes(data)
        try:
            assert decode.decode_boxes(path, 4, functools.partial(CROPS.boxes, 0, id_)).shape == (3, 4, 4, 3)
        except Unreadable as error:
            assert str(error).startswith(f"{path} (") and len(str(error).splitlines()) == 1

    pieces = tuple(piece for piece in fuzzing.PIECES if len(piece) < 100)
    damage = fuzzing.damaged([path.read_bytes()], pieces)
    fuzzing.hold(check, st.tuples(damage, st.integers(0, 2**31 - 1)), 12 * times)
