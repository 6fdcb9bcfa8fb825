"""Listing of image folders and CSVs: images, classes, and the errors and warnings for unusual layouts."""

import os

import numpy as np
import pytest

from grafit_jax.data import hierarchy, sources
from grafit_jax.data.readers import photos
from grafit_jax.errors import UserError
from helpers import image_files
from helpers.image_files import load, named

# Folders.


def test_a_tree_golden(tmp_path):
    written = image_files.write_tree(
        tmp_path, {"train/y/b": 2, "train/x/c": 1, "train/x/a": 2, "test/x/c": 1, "test/y/b": 2}
    )
    records = load(tmp_path)
    train_, test = records["train"], records["test"]
    assert train_.train_names == test.train_names == ("x", "y")
    assert train_.label_names == test.label_names == ("a", "b", "c")
    assert train_.train_label.tolist() == [0, 0, 0, 1, 1] and train_.label.tolist() == [0, 0, 2, 1, 1]
    assert test.train_label.tolist() == [0, 1, 1] and test.label.tolist() == [2, 1, 1]
    expected = ["train/x/a/00.png", "train/x/a/01.png", "train/x/c/00.png", "train/y/b/00.png", "train/y/b/01.png"]
    assert train_.filename.tolist() == [str(tmp_path / name) for name in expected]
    for r in records.values():
        for file, image in zip(r.filename, r.image, strict=True):
            np.testing.assert_array_equal(image, written[file])
    assert train_.image.shape == (5, 6, 5, 3) and train_.label.dtype == np.int32 and train_.broken == ()


def test_the_same_fine_name_under_two_coarse_ones_is_two_classes(tmp_path):
    image_files.write_tree(
        tmp_path, {f"{s}/{c}/{f}": 1 for s in ("train", "test") for c in "xy" for f in ("other", f"z{c}")}
    )
    records = load(tmp_path)["train"]
    assert records.label_names == ("x/other", "y/other", "zx", "zy")
    assert [records.label_names[i] for i in records.label] == ["x/other", "zx", "y/other", "zy"]
    assert records.train_label.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ["val", "validation"])
def test_no_fine_labels_without_fine_folders(tmp_path, name):
    image_files.write_tree(tmp_path, {"train/x": 2, "train/y": 2, f"{name}/x": 1, f"{name}/y": 1})
    records = load(tmp_path)
    assert records["train"].label is None and records["test"].label is None
    assert records["test"].train_label.tolist() == [0, 1]


def test_fine_labels_of_only_the_test_split_are_kept(tmp_path):
    image_files.write_tree(tmp_path, {"train/x": 2, "train/y": 2, "test/x/a": 1, "test/y/b": 1})
    records = load(tmp_path)
    assert records["train"].label is None and records["test"].label.tolist() == [0, 1]


def test_links_hidden_files_suffixes_and_accents(tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    image_files.write_tree(elsewhere, {"b": 2})
    root = tmp_path / "root"
    image_files.write_tree(root, {"train/é": 1, "test/e\u0301": 1, "train/x": 1, "test/x": 1})  # composed, decomposed
    (root / "train" / "é" / "02.JPEG").symlink_to(elsewhere / "b" / "00.png")
    (root / "train" / "z").symlink_to(elsewhere / "b")
    (root / "train" / "x" / "loop").symlink_to(root)  # back to a parent folder
    (root / "train" / "x" / "self").symlink_to(root / "train" / "x")
    for hidden in (".DS_Store", "x/.thumb.png", "x/notes.txt"):
        (root / "train" / hidden).write_text("")
    (root / "test" / "empty").mkdir()
    image_files.write_tree(root, {".cache/x": 1})
    records = load(root)
    assert records["train"].train_names == ("x", "z", "é")
    assert [name for name, _ in named(records["train"]).values()] == ["x", "z", "z", "é", "é"]
    assert [name for name, _ in named(records["test"]).values()] == ["x", "é"]
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 2 and "ignored 6 entries that are hidden, not images, or links" in warned[0]
    assert "found 1 folders without images, such as" in warned[1] and warned[1].endswith("test/empty")


LAYOUTS = {
    "nothing": ({}, r": found no folders; expected a train split, called train\."),
    "no test": (
        {"train/x": 1},
        r": found the folders train; expected a test split, called test or val or validation; or use data\.holdout to",
    ),
    "empty split": ({"train/x": 1, "test/x": 0}, "found no image for test; expected at least one"),
    "no classes": (
        {"train": 1, "test/x": 1},
        r"train/00\.png: found an image directly in the split; expected images in train/<coarse>/ or",
    ),
    "both": (
        {"train/x": 1, "train/x/b": 1, "test/x": 1},
        r"split train: found a finer class of x for .*x/b/00\.png but none for .*train/x/00\.png; expected one",
    ),
    "divided in one split": (
        {"train/x/a": 1, "train/y": 1, "test/x/a": 1, "test/y/b": 1},
        r"found a finer class of y in test \(.*test/y/b/00\.png\) but none in train \(.*train/y/00\.png\), where other",
    ),
    "both, deeper": (
        {"train/x": 1, "train/y/b/c": 1, "train/y/b": 1, "test/x": 1},
        r"found a finer class of y/b for .*y/b/c/00\.png but none for .*y/b/00\.png",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_invalid_layout_gives_a_one_line_error(tmp_path, layout):
    folders, message = LAYOUTS[layout]
    image_files.write_tree(tmp_path, folders)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"none: found no such folder; expected one with train/ and test/"):
        load(tmp_path / "none")


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_several_test_splits_give_a_warning(tmp_path, capsys, kind):
    image_files.write_tree(tmp_path, {"train/x": 2, "train/y": 2, "val/x": 3, "val/y": 1, "test/x": 1, "test/y": 1})
    source = f"folder:{tmp_path}"
    if kind == "csv":
        files = sorted(tmp_path.rglob("*.png"))
        rows = [(file, file.parts[-2], file.parts[-3]) for file in files]
        source = f"csv:{image_files.write_csv(tmp_path / 't.csv', rows, header=('path', 'coarse', 'split'))}"
    for test_split, taken, left_out, number in (("", "test", "val", 2), ("val", "val", "test", 4)):
        assert len(sources.load(source=source, test_split=test_split)["test"]) == number
        assert capsys.readouterr().err == (
            f"warning: {source}: found test split {taken}; ignored: {left_out}; use data.test_split={left_out} "
            "to change it\n"
        )
    with pytest.raises(UserError, match=r"found .*train.*; expected a test split, called validation\."):
        sources.load(source=source, test_split="validation")
    with pytest.raises(UserError, match=r"found data\.test_split = 'dev'; expected one of test, val, validation\."):
        sources.load(source=source, test_split="dev")


def test_holdout_needs_no_test_split(tmp_path):
    image_files.write_tree(tmp_path, {"train/x/a": 6, "train/x/b": 6, "train/y/c": 6})
    records = sources.load(source=f"folder:{tmp_path}", holdout=0.5)
    assert {split: np.bincount(r.label).tolist() for split, r in records.items()} == {
        "train": [3, 3, 3], "test": [3, 3, 3],
    }  # fmt: skip


def test_unusual_classes_give_warnings(tmp_path, capsys):
    image_files.write_tree(tmp_path, {"train/x": 2, "test/x": 1, "test/new": 1})
    records = load(tmp_path)
    assert records["test"].train_names == ("new", "x")
    first, second = capsys.readouterr().err.splitlines()
    assert "found 1 coarse classes in test but not in train, such as new" in first
    assert "found a single coarse class (x) in train" in second


def test_unreadable_folders_and_undecodable_names_give_errors(tmp_path, monkeypatch):
    image_files.write_tree(tmp_path, image_files.TREE)
    os.mkdir(os.fsencode(tmp_path) + b"/train/x/\xff")
    with pytest.raises(UserError, match=r"train/x: found the name '\\udcff'; expected UTF-8; rename it"):
        load(tmp_path)
    listdir = os.listdir

    def refused(path):  # root may list everything
        if str(path).endswith("test/y"):
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    os.rmdir(os.fsencode(tmp_path) + b"/train/x/\xff")
    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(UserError, match=r"test/y: found an unreadable folder \(Permission denied\); make it readable"):
        load(tmp_path)


def test_selected_classes_keep_the_files_of_their_images(tmp_path):
    image_files.write_tree(tmp_path, image_files.TREE)
    records = load(tmp_path)
    for split, kept in hierarchy.select(records, (1,)).items():
        assert named(kept) == {f: key for f, key in named(records[split]).items() if key[0] == "y"}
        assert len(kept)


# CSVs.


def test_a_csv_of_a_folder_gives_the_same_records(tmp_path):
    image_files.write_tree(tmp_path / "d", image_files.TREE)
    expected = load(tmp_path / "d")
    rows = [(file, *key, split) for split, r in expected.items() for file, key in named(r).items()]
    relative = [(os.path.relpath(rows[0][0], tmp_path), *rows[0][1:]), *rows[1:]]
    # As spreadsheets write it: with a byte-order mark, quotes, and both relative and absolute paths.
    table = image_files.write_csv(tmp_path / "t.csv", relative, encoding="utf-8-sig", quoting=1)
    got = sources.load(source=f"csv:{table}")
    for split, r in expected.items():
        assert named(got[split]) == named(r)
        np.testing.assert_array_equal(got[split].image, r.image)
    # Keeps the order of the rows, strips blanks, allows no column fine, and takes `val` as the test split.
    rows = [(f" {file} ", c, {"train": "train", "test": "val"}[s]) for file, c, _, s in rows[::-1]]
    got = sources.load(
        source=f"csv:{image_files.write_csv(tmp_path / 't.csv', rows, header=('path', 'coarse', 'split'))}"
    )
    assert got["train"].label is None
    assert got["train"].filename.tolist() == expected["train"].filename.tolist()[::-1]


HERD = {
    "0.png": ("cat", "lion", "african lion"), "1.png": ("cat", "lion", "asian lion"), "2.png": ("cat", "puma"),
    "3.png": ("dog", "fox", "african lion"), "4.png": ("dog", "wolf", "grey wolf"), "5.png": ("bear",),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "folder"])
def test_a_hierarchy_of_three_levels(tmp_path, kind):
    """A class without finer ones is its own; a name under two classes is two classes."""
    if kind == "folder":
        for split in ("train", "test"):
            for name, classes in HERD.items():
                image_files.write(tmp_path.joinpath(split, *classes, name), image_files.pixels(1))
        source, levels = f"folder:{tmp_path}", ("coarse", "level2", "fine")
    else:
        levels = ("family", "genus", "species")
        rows = [(n, s, *c, *[""] * (3 - len(c))) for s in ("train", "test") for n, c in HERD.items()]
        for name in HERD:
            image_files.write(tmp_path / name, image_files.pixels(1))
        source = f"csv:{image_files.write_csv(tmp_path / 't.csv', rows, header=('path', 'split', *levels))}"
    records = sources.load(source=source)["train"]
    assert tuple(records.levels) == levels and records.train_level == levels[0]
    found = {}
    for i, file in enumerate(records.filename):
        found[os.path.basename(file)] = [level.names[level.label[i]] for level in records.levels.values()]
    assert found == {
        "0.png": ["cat", "lion", "cat/lion/african lion"], "1.png": ["cat", "lion", "asian lion"],
        "2.png": ["cat", "puma", "puma"], "3.png": ["dog", "fox", "dog/fox/african lion"],
        "4.png": ["dog", "wolf", "grey wolf"], "5.png": ["bear", "bear", "bear"],
    }  # fmt: skip
    finer = sources.load(source=source, train_level=levels[1], coarse_classes=("cat", "bear"))["train"]
    assert finer.train_names == ("bear", "lion", "puma") and len(finer) == 4
    # The classes of a gallery are the two finest.
    photos_of = {os.path.basename(p.filename): (p.coarse, p.fine) for p in photos.each(source.partition(":")[2])}
    assert photos_of["0.png"] == ("lion", "african lion") and photos_of["2.png"][1] == "puma"


def test_a_class_without_fine_ones_is_its_own_where_others_have_some(tmp_path):
    image_files.write_tree(tmp_path, {"train/x": 2, "train/y/b": 1, "train/y/c": 1, "test/x": 1, "test/y/b": 1})
    records = load(tmp_path)
    assert [*named(records["train"]).values()] == [("x", "x"), ("x", "x"), ("y", "b"), ("y", "c")]
    assert [*named(records["test"]).values()] == [("x", "x"), ("y", "b")]
    # A split without any fine class has unknown ones.
    image_files.write_tree(tmp_path / "b", {"train/x": 2, "train/y": 1, "test/x/a": 1, "test/y": 1})
    records = load(tmp_path / "b")
    assert records["train"].label is None and records["test"].label is not None
    assert [*named(records["test"]).values()] == [("x", "a"), ("y", "y")]


CSV_MISTAKES = {
    "header": ([], ("path", "class"), r"found the columns 'path', 'class'; expected path, split and, if known, coarse"),
    "no level": (
        [("0.png", "train")],
        ("path", "split"),
        r"found the columns path, split; expected also coarse and, if known, fine",
    ),
    "level/name": (
        [("0.png", "train", "x")],
        ("path", "split", "a/b"),
        r"found a level called 'a/b'; expected letters and digits.*rename the column",
    ),
    "no coarse": (
        [("0.png", "train", "x")],
        ("path", "split", "fine"),
        r"found a column fine but none called coarse; expected both",
    ),
    "taken": (
        [("0.png", "train", "x")],
        ("path", "split", "trunk"),
        r"found a level called 'trunk'; expected letters .* none of trunk",
    ),
    "gap": (
        [("0.png", "test", "x", "y", "z"), ("1.png", "train", "x", "", "z")],
        ("path", "split", "family", "genus", "species"),
        r"line 3: found no genus; expected one for every image",
    ),
    "semicolons": (
        [],
        ("path;coarse;split",),
        r"found columns separated by ';'; expected commas; save it with commas",
    ),
    "twice": ([], ("path", "coarse", "split", "coarse"), r"each once and separated by commas"),
    "split": (
        [("a.png", "x", "", "dev")],
        None,
        r"line 4: found split 'dev'; expected one of train, test, val, validation",
    ),
    "empty": ([("a.png", "", "", "test")], None, r"line 4: found no coarse; expected one"),
    "short": ([("a.png", "x")], None, r"line 4: found 2 values; expected 4"),
    "again": ([("d/../0.png", "x", "", "train")], None, r"line 4: found d/\.\./0\.png again, first in line 2"),
    "mixed": ([("2.png", "x", "f", "train")], None, r"found a finer class of x for .*2\.png but none for .*0\.png"),
}


@pytest.mark.parametrize("name", CSV_MISTAKES)
def test_csv_errors_name_the_line(tmp_path, name):
    rows, header, message = CSV_MISTAKES[name]
    good = [] if header else [("0.png", "x", "", "train"), ("1.png", "x", "", "test")]
    table = image_files.write_csv(tmp_path / "t.csv", [*good, *rows], header or ("path", "coarse", "fine", "split"))
    with pytest.raises(UserError, match=message):
        sources.load(source=f"csv:{table}")


@pytest.mark.parametrize(("data", "message"), [(b"\xff\xfe\0a", "cannot be read"), (None, "found no file")])
def test_an_invalid_csv_is_refused(tmp_path, data, message):
    if data is not None:
        (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(UserError, match=message):
        sources.load(source=f"csv:{tmp_path}/t.csv")


def test_a_folder_given_as_csv_is_refused(tmp_path):
    with pytest.raises(UserError, match=r": found a folder; expected csv:FILE; use folder:DIR"):
        sources.load(source=f"csv:{tmp_path}")


def test_labels_named_like_missing_values_give_a_warning(tmp_path, capsys):
    image_files.write_tree(tmp_path, {"d": 4})
    rows = [(f"d/{i:02}.png", c, f, s) for i, (c, f, s) in enumerate(
        [("x", "a", "train"), ("x", "NaN", "train"), ("na", "b", "test"), ("banana", "nancy", "test")]
    )]  # fmt: skip
    got = sources.load(source=f"csv:{image_files.write_csv(tmp_path / 't.csv', rows)}")
    assert f"{tmp_path}/t.csv: found 2 labels named nan or na or n/a" in (warned := capsys.readouterr().err)
    assert "first in line 3; they are used as classes; if they mean missing values" in warned
    assert got["train"].label_names == ("NaN", "a", "b", "nancy")


def test_an_image_in_both_splits_gives_a_warning(tmp_path, capsys):
    image_files.write_tree(tmp_path, {"d": 2})
    rows = [("d/00.png", c, "", s) for s in ("train", "test") for c in "x"] + [("d/01.png", "y", "", "train")]
    sources.load(source=f"csv:{image_files.write_csv(tmp_path / 't.csv', rows)}")
    assert f"found 1 images in both splits, such as {tmp_path}/d/00.png" in capsys.readouterr().err
