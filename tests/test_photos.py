"""Listing of any images: files, folders, CSVs, images in memory, and mixtures of these."""

import os
import pathlib

import numpy as np
import PIL.Image
import pytest

from grafit_jax.data.readers import photos
from grafit_jax.errors import UserError
from helpers import image_files


def listed(images):
    return [(photo.id, photo.coarse, photo.fine) for photo in photos.each(images)]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_files.write_tree(
        pathlib.Path("p"), {"train/x/a": 1, "test/x/b": 1, "test/y": 1, "": 1, "kingdom/genus/species": 1}
    )
    return tmp_path


def test_a_folder_gives_sorted_files_with_their_last_two_folders_as_classes(tree):
    expected = [
        ("p/00.png", "", ""),
        ("p/kingdom/genus/species/00.png", "genus", "species"),
        ("p/test/x/b/00.png", "x", "b"),
        ("p/test/y/00.png", "y", ""),
        ("p/train/x/a/00.png", "x", "a"),
    ]
    assert listed("p") == listed(pathlib.Path("p/")) == expected
    assert [photo.filename for photo in photos.each("p")] == [str(tree / name) for name, *_ in expected]


def test_a_csv_is_relative_to_its_folder_and_may_have_classes(tree):
    image_files.write_csv(tree / "p" / "list.csv", [("00.png", "g", "s"), ("test/y/00.png", "", "h")],
                          header=("path", "coarse", "fine"))  # fmt: skip
    assert listed("p/list.csv") == [("p/00.png", "g", "s"), ("p/test/y/00.png", "", "h")]
    image_files.write_csv(tree / "only.csv", [("p/00.png",)], header=("path",))
    assert listed(tree / "only.csv") == [(str(tree / "p/00.png"), "", "")]
    # A CSV to train on: the two finest of its levels.
    for levels, row, expected in (
        ((), (), ("", "")),
        (("kind",), ("x",), ("x", "")),
        (("family", "genus", "label"), ("f", "g", "s"), ("g", "s")),
        (("family", "genus", "label"), ("f", "g", ""), ("g", "g")),
        (("family", "genus", "label"), ("f", "", ""), ("f", "f")),
        (("family", "genus", "label"), ("", "", ""), ("", "")),
        (("fine",), ("s",), ("", "s")),
    ):
        header = ("path", "split", *levels)
        image_files.write_csv(tree / "train.csv", [("p/00.png", "train", *row)], header=header)
        assert listed(tree / "train.csv") == [(str(tree / "p/00.png"), *expected)]


def test_images_in_memory_are_numbered_among_all_images(tree):
    grey, rgb = np.zeros((4, 4), np.uint8), np.zeros((2, 4, 4, 3), np.uint8)
    entries = [grey, "p/00.png", PIL.Image.new("RGB", (3, 3)), rgb]
    assert [name for name, *_ in listed(entries)] == ["0", "p/00.png", "2", "3", "4"]
    assert listed(rgb[0]) == [("0", "", "")]


def test_an_array_or_series_of_paths_gives_these(tree):
    expected = listed(["p/00.png", "p/test/y/00.png"])
    assert listed(np.array(["p/00.png", "p/test/y/00.png"])) == expected
    assert listed(np.array([pathlib.Path("p/00.png"), "p/test/y/00.png"], object)) == expected


def test_a_path_through_a_linked_folder_and_up_is_found(tree):
    (tree / "elsewhere" / "deep").mkdir(parents=True)
    image_files.write(tree / "elsewhere" / "a.png")
    (tree / "link").symlink_to(tree / "elsewhere" / "deep")
    (photo,) = photos.each("link/../a.png")
    assert os.path.samefile(photo.filename, tree / "elsewhere" / "a.png")


def test_a_generator_is_read_one_image_at_a_time():
    taken = []

    def images():
        for i in range(3):
            taken.append(i)
            yield np.zeros((2, 2), np.uint8)

    first = next(photos.each(images()))
    assert first.id == "0" and taken == [0]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("none.jpg", r"found no file 'none\.jpg'; expected an image, a folder of images or a CSV"),
        ("empty", r"empty: found no images in this folder; expected files such as empty/a\.jpg"),
        ("rows.csv", r"rows\.csv: found no rows; expected an image in each"),
        (
            "columns.csv",
            r"columns\.csv: found the columns 'file'; expected path and, if known, coarse, fine, each once",
        ),
        ("blank.csv", r"blank\.csv, line 2: found no path; expected one for every image"),
        (np.zeros((4, 4, 3)), r"found an array of float64 \[4, 4, 3\]; expected uint8 \[H, W\], .* from 0 to 255"),
        (np.zeros((4, 4, 2), np.uint8), r"found an array of uint8 \[4, 4, 2\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"found an array of uint8 \[0, 4, 4, 3\]"),
        (b"a.png", "found an image of type bytes"),
        ("s\udcff.png", "found the name 's.udcff.png'; expected UTF-8"),
        (7, "found an image of type int; expected a path, a PIL image or an array"),
        ([None], "found an image of type NoneType"),
    ],
)
def test_what_is_no_image_is_a_one_line_error(tmp_path, monkeypatch, images, message):
    monkeypatch.chdir(tmp_path)
    os.mkdir("empty")
    pathlib.Path("empty/notes.txt").touch()
    pathlib.Path("s\udcff.png").touch()
    for name, text in (("rows", "path\n"), ("columns", "file\na.png\n"), ("blank", "path,fine\n,a\n")):
        pathlib.Path(f"{name}.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        listed(images)
