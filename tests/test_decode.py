"""Decoding: modes and formats compared with PIL and NumPy, errors, and the order of parallel decoding."""

import functools

import numpy as np
import PIL.Image
import pytest

from grafit_jax.data.readers import decode
from grafit_jax.data.readers.decode import Unreadable
from helpers import image_files
from helpers.image_files import square

RGB = image_files.pixels(0, 40, 30)


def test_a_png_is_decoded_losslessly_and_resized_as_by_pil(tmp_path):
    path = image_files.write(tmp_path / "i.png", RGB)
    np.testing.assert_array_equal(decode.decode(path), RGB)
    resized = PIL.Image.fromarray(RGB).resize((8, 8), PIL.Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(square(path, 8), resized)


@pytest.mark.parametrize("name", ["i.bmp", "i.gif", "i.tif", "i.webp", "i.ppm", "i.JPG"])
def test_formats(tmp_path, name):
    path = image_files.write(tmp_path / name, RGB, **({"lossless": True} if name == "i.webp" else {}))
    got = decode.decode(path)
    np.testing.assert_array_equal(got, PIL.Image.open(path).convert("RGB"))
    assert got.shape == (40, 30, 3) and np.mean(np.abs(got.astype(int) - RGB)) < (20 if name == "i.gif" else 4)


def test_modes(tmp_path):
    rgb = PIL.Image.fromarray(RGB)
    grey = np.asarray(rgb.convert("L"))
    np.testing.assert_array_equal(
        decode.decode(image_files.write(tmp_path / "L.png", grey)), np.repeat(grey[..., None], 3, 2)
    )
    bilevel = np.asarray(rgb.convert("1"))
    got = decode.decode(image_files.write(tmp_path / "1.png", bilevel))
    np.testing.assert_array_equal(got, np.repeat(bilevel[..., None] * np.uint8(255), 3, 2))
    rgb.quantize(7).save(tmp_path / "P.png")
    np.testing.assert_array_equal(decode.decode(tmp_path / "P.png"), rgb.quantize(7).convert("RGB"))
    # CMYK without a profile: each of C, M, Y darkens with K, (255 - c)(255 - k) / 255.
    cmyk = np.random.default_rng(1).integers(0, 256, (9, 7, 4), np.uint8)
    PIL.Image.fromarray(cmyk, "CMYK").save(tmp_path / "c.tif")
    expected = (255.0 - cmyk[..., :3]) * (255.0 - cmyk[..., 3:]) / 255
    assert np.max(np.abs(decode.decode(tmp_path / "c.tif") - expected)) <= 1
    rgb.convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    assert np.mean(np.abs(decode.decode(tmp_path / "c.jpg").astype(int) - RGB)) < 4


def test_transparency_is_composited_on_white(tmp_path):
    rgba = np.random.default_rng(2).integers(0, 256, (9, 7, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 0)
    alpha = rgba[..., 3:] / 255.0
    got = decode.decode(image_files.write(tmp_path / "i.png", rgba))
    assert np.max(np.abs(got - (rgba[..., :3] * alpha + 255 * (1 - alpha)))) <= 1
    assert got[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(decode.decode(image_files.write(tmp_path / "la.png", rgba[..., 2:]))[0, 0], [255] * 3)
    palette = PIL.Image.new("P", (2, 1), 0)
    palette.putpalette([200, 0, 0, 0, 100, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert decode.decode(tmp_path / "p.png").tolist() == [[[255, 255, 255], [0, 100, 0]]]
    PIL.Image.fromarray(np.array([[[9, 9, 9], [1, 2, 3]]], np.uint8)).save(tmp_path / "t.png", transparency=(9, 9, 9))
    assert decode.decode(tmp_path / "t.png").tolist() == [[[255, 255, 255], [1, 2, 3]]]


def test_16_bits_are_scaled_to_8(tmp_path):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    expected = np.repeat(np.round(values / 257).astype(np.uint8)[..., None], 3, 2)
    assert expected[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    (tmp_path / "grey.png").write_bytes(image_files.png16(values))
    np.testing.assert_array_equal(decode.decode(tmp_path / "grey.png"), expected)
    np.testing.assert_array_equal(decode.decode(image_files.write(tmp_path / "grey.tif", values)), expected)
    (tmp_path / "rgb.png").write_bytes(image_files.png16(np.repeat(values[..., None], 3, 2)))
    assert np.max(np.abs(decode.decode(tmp_path / "rgb.png").astype(int) - expected)) <= 1
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
    resized = square(image_files.write(tmp_path / "ramp.tif", ramp), 4)[0, :, 0]
    # Triangles around pixels 7.5, 23.5, 39.5 and 55.5 of 0..63; the border truncates the outer two to 9.02 and 53.98.
    np.testing.assert_allclose(resized, [36.5, 95.1, 159.9, 218.5], atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    # How a viewer transforms the stored pixels: EXIF 2.3, section 4.6.4.
    upright = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x, 1),
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = image_files.write(tmp_path / "i.png", RGB, exif=exif)
    np.testing.assert_array_equal(decode.decode(path), upright(RGB))
    photo = image_files.write(tmp_path / "i.jpg", RGB, exif=exif, quality=95)
    assert np.mean(np.abs(decode.decode(photo).astype(int) - upright(RGB))) < 4


def test_the_first_frame_of_an_animation_is_decoded(tmp_path):
    frames = [PIL.Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (0, 255)]
    for name in ("i.gif", "i.webp", "i.tif", "i.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert decode.decode(tmp_path / name).max() < 5, name


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


BROKEN = {
    "cut.jpg": (cut, "truncated"),
    "cut.png": (cut, "truncated|broken|bad|Truncated"),
    "text.jpg": (lambda path: path.write_text("no image"), r"no JPEG, PNG, GIF, BMP, TIFF, WEBP or PPM"),
    "empty.png": (lambda path: path.write_bytes(b""), "no JPEG"),
    "eps.png": (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "no JPEG"),
    "bomb.png": (lambda path: path.write_bytes(image_files.png_header(20_000, 20_000)), "400000000 pixels.*bomb"),
    "gone.png": (lambda path: path.unlink(), r"gone\.png \(No such file or directory\)"),
    "folder.png": (lambda path: (path.unlink(), path.mkdir()), r"\(Is a directory\)"),
    "loop.png": (lambda path: (path.unlink(), path.symlink_to(path)), "Too many levels of symbolic links"),
    "float.tif": (
        lambda path: PIL.Image.new("F", (3, 3)).save(path),
        r"\(found floating-point values, whose white level is unknown; save it with 8",
    ),
    "int.tif": (
        lambda path: PIL.Image.new("I", (3, 3), 65536).save(path),
        r"\(found 32-bit values, whose white level is unknown; save it with 8",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_undecodable_file_is_named_in_one_line(tmp_path, name):
    spoil, reason = BROKEN[name]
    path = tmp_path / name
    image_files.write(path, np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    spoil(path)
    for decoder in (decode.decode, lambda path: square(path, 1), lambda path: square(path, 8)):
        with pytest.raises(Unreadable, match=reason) as error:
            decoder(path)
        assert str(error.value).startswith(f"{path} (") and "\n" not in str(error.value)


def test_decode_all_keeps_the_order_and_yields_errors_in_place(tmp_path):
    large = image_files.pixels(0, 700, 700)  # takes longer than the following ones
    paths = [
        image_files.write(tmp_path / f"{i}.png", large if i % 5 == 0 else image_files.pixels(i)) for i in range(23)
    ]
    (tmp_path / "7.png").write_text("no image")
    for ahead in (0, 3, 100):
        got = list(decode.decode_all((functools.partial(square, path, 4) for path in paths), ahead))
        assert isinstance(got[7], Unreadable) and len(got) == 23
        for i in {*range(23)} - {7}:
            np.testing.assert_array_equal(got[i], square(paths[i], 4))


def test_decode_all_prefetches_no_more_than_requested(tmp_path):
    path, taken = image_files.write(tmp_path / "i.png"), []
    decoded = decode.decode_all((taken.append(i) or functools.partial(decode.decode, path) for i in range(20)), 4)
    for i in range(5):
        next(decoded)
        assert len(taken) == i + 5
    decoded.close()
    assert len(taken) == 9
