"""Decoded data sets kept on disk: equal to those read, read again once a file or an argument changes."""

import os
import pathlib

import numpy as np
import pytest

from grafit_jax.data import sources
from grafit_jax.data.readers import decode
from grafit_jax.errors import UserError
from helpers import image_files, tfds_data


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for split in a:
        one, other = a[split], b[split]
        np.testing.assert_array_equal(one.image, other.image)
        assert one.fingerprint() == other.fingerprint()
        assert [*one.levels] == [*other.levels]
        for level in one.levels:
            assert one.levels[level].names == other.levels[level].names
            np.testing.assert_array_equal(one.levels[level].label, other.levels[level].label)
        np.testing.assert_array_equal(one.filename, other.filename)
        assert (one.train_level, one.root, one.broken) == (other.train_level, other.root, other.broken)


@pytest.fixture
def decodings(monkeypatch):
    """The files that are decoded."""
    files = []
    decoded = decode.decode_boxes
    monkeypatch.setattr(decode, "decode_boxes", lambda file, *rest: files.append(file) or decoded(file, *rest))
    return files


@pytest.fixture
def photos(tmp_path):
    image_files.write_tree(tmp_path / "photos", image_files.TREE)
    return tmp_path / "photos"


def write_csv(photos):
    """Lists the photos in a CSV outside of their folder, with a level called like an array of npz files."""
    files = sorted(photos.rglob("*.png"))
    rows = [[os.path.relpath(f, photos.parent), *f.relative_to(photos).parts[:2], f.parent.name] for f in files]
    table = photos.parent / "list.csv"
    table.write_text("\n".join(map(",".join, [["path", "split", "image", "kind"], *rows])))
    return table


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_images_are_decoded_once_until_a_file_or_an_argument_changes(tmp_path, photos, decodings, kind):
    source = f"folder:{photos}" if kind == "folder" else f"csv:{write_csv(photos)}"
    broken = photos / "train/y/c/04.png"
    image_files.spoil(broken)
    how = {"source": source, "image_size": 5, "on_unreadable": "skip"}
    read = sources.load(**how)
    number = len(decodings)
    assert number and read["train"].broken

    cached = how | {"cache": str(tmp_path / "new" / "cache")}
    assert_equal(sources.load(**cached), read)
    assert len(decodings) == 2 * number
    assert_equal(sources.load(**cached), read)
    assert len(decodings) == 2 * number
    assert [path.is_dir() for path in pathlib.Path(cached["cache"]).iterdir()] == [True]

    assert sources.load(**cached | {"image_size": 4})["test"].image.shape[1:] == (4, 4, 3)
    assert len(decodings) == 3 * number
    image_files.write(broken, image_files.pixels(0, 5, 5))
    assert not sources.load(**cached)["train"].broken
    changed = photos / "train/x/a/00.png"
    stat = changed.stat()
    changed.write_bytes(changed.read_bytes()[::-1])  # no image, of the same size
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert [line.split(" (")[0] for line in sources.load(**cached)["train"].broken] == [str(changed)]


def test_a_file_that_has_become_readable_is_read(tmp_path, photos):
    table = write_csv(photos)
    lost = photos / "train/x/a/00.png"
    lost.rename(tmp_path / "lost.png")  # keeps its time of modification
    how = {"source": f"csv:{table}", "image_size": 5, "on_unreadable": "skip", "cache": str(tmp_path / "cache")}
    assert len(sources.load(**how)["train"].broken) == 1
    assert len([*(tmp_path / "cache").iterdir()]) == 1
    (tmp_path / "lost.png").rename(lost)
    assert not sources.load(**how)["train"].broken


def test_entries_outside_of_the_splits_do_not_count(tmp_path, photos, decodings):
    how = {"source": f"folder:{photos}", "image_size": 5, "cache": str(tmp_path / "cache")}
    sources.load(**how)
    number = len(decodings)
    image_files.write(photos / "runs" / "drawn.png", image_files.pixels(0, 5, 5))
    sources.load(**how)
    assert len(decodings) == number


def test_a_prepared_data_set_behind_a_link_counts(tmp_path):
    pytest.importorskip("tensorflow")
    tfds_data.make_builder(tmp_path / "ssd")
    (tmp_path / "tfds" / "tiny_hierarchy").mkdir(parents=True)
    (there,) = (tmp_path / "ssd" / "tiny_hierarchy").iterdir()
    (tmp_path / "tfds" / "tiny_hierarchy" / there.name).symlink_to(there)
    how = {"source": "tfds:tiny_hierarchy", "data_dir": str(tmp_path / "tfds"), "cache": str(tmp_path / "cache")}
    sources.load(**how)
    sources.load(**how)
    assert len([*(tmp_path / "cache").iterdir()]) == 1
    os.utime(next(there.glob("*.json")))  # as if prepared again
    sources.load(**how)
    assert len([*(tmp_path / "cache").iterdir()]) == 2


def test_warnings_are_repeated_and_only_the_first_host_stores(tmp_path, photos, capsys, monkeypatch):
    image_files.spoil(photos / "train/y/c/04.png")
    how = {"source": f"folder:{photos}", "image_size": 5, "on_unreadable": "skip", "cache": str(tmp_path / "cache")}
    monkeypatch.setattr("grafit_jax.parallel.is_first", lambda: False)
    sources.load(**how)
    assert not (tmp_path / "cache").exists()
    monkeypatch.undo()
    said = []
    for _ in range(2):
        capsys.readouterr()
        sources.load(**how)
        said.append(capsys.readouterr().err)
    assert "04.png" in said[0] and said[1] == said[0]


def test_streamed_images_are_not_kept(tmp_path, photos, capsys):
    cache = tmp_path / "cache"
    sources.load(source=f"folder:{photos}", image_size=5, stream=True, cache=str(cache))
    sources.load(source="digits", cache=str(cache))
    assert not cache.exists()
    assert capsys.readouterr().err == (
        "warning: found data.cache with data.stream = True, where it has no effect\n"
        "warning: found data.cache with data.source = digits, where it has no effect\n"
    )


def test_a_prepared_data_set_is_read_without_tensorflow(tmp_path, monkeypatch):
    tfds_data.make_builder(tmp_path)
    how = {"source": "tfds:tiny_hierarchy", "data_dir": str(tmp_path)}
    cached = how | {"cache": str(tmp_path / "cache")}
    read = sources.load(**how)
    assert_equal(sources.load(**cached), read)
    monkeypatch.setattr("grafit_jax.data.readers.tfds.import_tfds", None)
    assert_equal(sources.load(**cached), read)


def test_errors_of_the_folder_are_one_line(tmp_path, photos):
    how = {"source": f"folder:{photos}", "image_size": 5}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot write .*file/[0-9a-f]{16} \(.*\); use another path\.$"):
        sources.load(**how, cache=str(tmp_path / "file"))
    sources.load(**how, cache=str(tmp_path / "cache"))
    (stored,) = (tmp_path / "cache").glob("*/train.npz")
    stored.write_bytes(stored.read_bytes()[:100])
    with pytest.raises(UserError, match=r"train\.npz cannot be read \(.*\); delete this folder\.$"):
        sources.load(**how, cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"found no such folder"):
        sources.load(source=f"folder:{tmp_path}/none", cache=str(tmp_path / "cache"))
