"""Writers of image files, folders and CSVs for tests."""

import csv
import struct
import zlib

import numpy as np
import PIL.Image

from grafit_jax.data import sources
from grafit_jax.data.readers import decode
from grafit_jax.views import crops


def pixels(seed, height=6, width=5):
    """uint8 [H, W, 3], smooth enough for a JPEG."""
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), PIL.Image.Resampling.BILINEAR))


def write(path, array=None, **options):
    """Writes an image file in the format of its suffix; returns its path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = pixels(len(str(path))) if array is None else array
    PIL.Image.fromarray(array).save(path, **options)
    return str(path)


def write_tree(root, layout, **size):
    """Writes root/<folder>/<number>.png for a layout {folder: number of images}; returns {path: pixels}."""
    written = {}
    for folder, count in layout.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            path = root / folder / f"{i:02}.png"
            written[str(path)] = pixels([len(written), count], **size)
            write(path, written[str(path)])
    return written


TREE = {f"{split}/{coarse}/{fine}": count
        for split, count in (("train", 5), ("test", 3)) for coarse, fine in ("xa", "xb", "yc")}  # fmt: skip


def write_csv(path, rows, header=("path", "coarse", "fine", "split"), encoding="utf-8", **options):
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, **options).writerows([header, *rows])
    return path


def png16(values):
    """Encodes uint16 [H, W] or [H, W, 3] as a 16-bit PNG; PIL cannot write 16-bit RGB."""
    height, width = values.shape[:2]

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if values.ndim == 2 else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_header(width, height):
    """Encodes a PNG whose header declares this size, but whose data are one pixel."""
    whole = png16(np.zeros((1, 1), np.uint16))
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return whole[:8] + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + whole[33:]


def load(root, **options):
    return sources.load(source=f"folder:{root}", **options)


def named(records):
    """Returns {file: (coarse name, fine name)}."""
    fine = [None] * len(records) if records.label is None else [records.label_names[i] for i in records.label]
    return {
        str(f): (records.train_names[c], y) for f, c, y in zip(records.filename, records.train_label, fine, strict=True)
    }


def spoil(path):
    with open(path, "w") as file:
        file.write("no image")


def square(path, size):
    """Decodes a whole image file, resized to uint8 [S, S, 3]."""
    return decode.decode_boxes(path, size, crops.whole)[0]
