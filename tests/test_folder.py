"""Image files in memory and streamed: sizes, unreadable files, epochs, and end-to-end runs."""

import os
import pathlib

import numpy as np
import PIL.Image
import pytest

from grafit_jax import experiment, restore
from grafit_jax.data import sources
from grafit_jax.data.readers.folder import FolderImages
from grafit_jax.data.records import in_order
from grafit_jax.errors import UserError
from grafit_jax.retrieval import evaluate as retrieval_metrics
from helpers import image_files
from helpers.image_files import load, named, spoil
from helpers.runs import small_config, split_features

# Sizes and unreadable files.


def test_images_of_several_sizes_require_image_size(tmp_path):
    image_files.write_tree(tmp_path, image_files.TREE)
    image_files.write(tmp_path / "train/y/c/00.png", image_files.pixels(0, 9, 7))
    with pytest.raises(
        UserError, match=r"c/00\.png: found 7 x 9 pixels; expected 5 x 6 as in .*a/00\.png; set data\.image_size"
    ):
        load(tmp_path)
    images = load(tmp_path, image_size=4)["train"].image
    resized = PIL.Image.fromarray(image_files.pixels(0, 9, 7)).resize((4, 4), PIL.Image.Resampling.BILINEAR)
    assert images.shape == (15, 4, 4, 3)
    np.testing.assert_array_equal(images[10], resized)


@pytest.mark.parametrize("stream", [False, True])
def test_unreadable_files_raise_or_are_skipped_and_listed(tmp_path, stream, capsys):
    whole = image_files.write_tree(tmp_path, image_files.TREE)
    broken = [str(tmp_path / name) for name in ("train/x/a/00.png", "train/y/c/04.png", "test/x/b/01.png")]
    for path in broken:
        spoil(path)
    options = {"image_size": 5, "stream": stream}
    with pytest.raises(UserError, match=r"found an unreadable image: .*0[01]\.png \(no JPEG.*data\.on_unreadable=skip"):
        # Streamed files are opened on use.
        records = load(tmp_path, **options)
        list(records["train"].image.in_order(4))
    capsys.readouterr()
    records = load(tmp_path, on_unreadable="skip", **options)
    for split, left in (("train", 13), ("test", 8)):
        r = records[split]
        assert len(r) == len(r.label) == len(r.train_label) == left
        assert [line.split(" (")[0] for line in r.broken] == [b for b in broken if f"/{split}/" in b]
        assert named(r) == {f: tuple(f.split("/")[-3:-1]) for f in whole if f"/{split}/" in f and f not in broken}
        rows = np.concatenate(list(in_order(r.image, 4)))
        for file, image in zip(r.filename, rows, strict=True):
            expected = PIL.Image.fromarray(whole[file]).resize((5, 5), PIL.Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(image, expected)
    warned = capsys.readouterr().err
    assert f"skipped 2 of 15 images, which are unreadable, such as {broken[0]} (no JPEG" in warned
    assert "skipped 1 of 9" in warned


def test_no_readable_image_at_all(tmp_path):
    for path in image_files.write_tree(tmp_path, {"train/x": 2, "test/x": 1}):
        spoil(path)
    with pytest.raises(UserError, match="found no readable image among 2, such as"):
        load(tmp_path, on_unreadable="skip")


@pytest.mark.parametrize("stream", [False, True])
def test_selected_classes_without_images_in_a_split_are_refused(tmp_path, stream):
    image_files.write_tree(tmp_path, {"train/x": 2, "train/y": 2, "test/x": 1})
    with pytest.raises(UserError, match=r"found no image for test with coarse_classes = \(1,\); add other"):
        load(tmp_path, image_size=4, stream=stream, coarse_classes=(1,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_unreadable": "ignore"}, "found data.on_unreadable = 'ignore'; expected one of fatal, skip"),
        ({"stream": True}, "folder:.*: found data.stream with data.image_size = 0; expected the side"),
        ({"variant": "split1"}, "found data.variant = 'split1' with folder:.*; expected it only with prepared TFDS"),
        ({"coarse_classes": (0, 7)}, "coarse_classes: found 7; expected numbers from 0 to 1"),
        (
            {"source": "digits", "on_unreadable": "skip"},
            r"data.on_unreadable = 'skip' with digits; expected it only with image files \(folder:DIR, csv:FILE\)",
        ),
    ],
)
def test_unsupported_options_are_refused(tmp_path, options, message):
    image_files.write_tree(tmp_path, image_files.TREE)
    with pytest.raises(UserError, match=message):
        sources.load(**({"source": f"folder:{tmp_path}"} | options))


# Streaming.


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    image_files.write_tree(
        root, {f"{s}/{c}/{f}": n for s, n in (("train", 30), ("test", 6)) for c, f in ("xa", "xb", "yc")}
    )
    return root


def epoch_of(images, seed, batch_size=16, **options):
    batches = list(images.shuffled(batch_size, seed=seed, **options))
    assert all(len(ids) == len(x) == batch_size and ids.dtype == np.int32 for ids, x in batches)
    return np.concatenate([ids for ids, _ in batches]), np.concatenate([x for _, x in batches])


@pytest.mark.parametrize("options", [{}, {"coarse_classes": (1,)}, {"holdout": 0.3}])
@pytest.mark.parametrize("broken", ["fatal", "skip"])
def test_streamed_records_equal_records_in_memory(tree, options, broken):
    whole, streamed = (load(tree, image_size=7, stream=s, on_unreadable=broken, **options) for s in (False, True))
    images = streamed["train"].image
    assert isinstance(images, FolderImages) and isinstance(streamed["test"].image, np.ndarray)
    assert images.shape == whole["train"].image.shape and images.dtype == np.uint8 and images.ndim == 4
    np.testing.assert_array_equal(images.read(), whole["train"].image)
    assert [len(batch) for batch in images.in_order(25)] == [25] * (len(images) // 25) + [len(images) % 25]
    for split in ("train", "test"):
        for name in ("label", "train_label", "filename"):
            np.testing.assert_array_equal(getattr(streamed[split], name), getattr(whole[split], name))
        for file, image in zip(whole[split].filename, whole[split].image, strict=True):
            np.testing.assert_array_equal(image, image_files.square(file, 7))
    np.testing.assert_array_equal(streamed["test"].image, whole["test"].image)
    ids, shuffled = epoch_of(images, seed=3)
    assert len(ids) == len(np.unique(ids)) == len(images) // 16 * 16
    np.testing.assert_array_equal(shuffled, whole["train"].image[ids])


def test_the_order_depends_only_on_the_seed_and_hosts_share_the_split_evenly(tree):
    images = load(tree, image_size=7, stream=True)["train"].image
    first, again, other = (epoch_of(images, seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.mean(np.diff(first) == 1) < 0.2
    parts = [epoch_of(images, 5, batch_size=1, shard=(i, 4))[0] for i in range(4)]
    assert sorted(map(len, parts)) == [22, 22, 23, 23]
    assert sorted(np.concatenate(parts)) == list(range(90))
    for part in parts:  # each has images of all classes, which have 30 images each
        assert all(7 <= n <= 8 for n in np.bincount(part // 30))
        assert not np.array_equal(part, np.sort(part))


def test_a_file_that_becomes_unreadable_during_an_epoch_is_skipped(tmp_path, capsys):
    paths = [*image_files.write_tree(tmp_path, {"train/x/a": 20, "train/y/b": 17, "test/x/a": 1})][:37]
    records = load(tmp_path, image_size=6, stream=True, on_unreadable="skip")["train"]
    images, pixels = records.image, records.image.read()
    order = epoch_of(images, seed=0, batch_size=8)[0]
    assert len(order) == 32 and capsys.readouterr().err == ""
    broken = order[[3, 9, 10, 11, 12, 31, 0]]
    whole = pathlib.Path(paths[broken[0]]).read_bytes()
    for row in broken:
        spoil(paths[row])
    ids, got = epoch_of(images, seed=0, batch_size=8)
    # The order without the unreadable ones, then the five images past the last batch, then the first ones again.
    left = [row for row in order if row not in broken]
    spare = [row for row in range(37) if row not in order]
    assert ids[:25].tolist() == left and sorted(ids[25:30]) == spare and ids[30:].tolist() == left[:2]
    np.testing.assert_array_equal(got, pixels[ids])
    assert sorted(images.broken) == sorted(paths[row] for row in broken)
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 7 and f"(number 1): {paths[order[0]]} (no JPEG" in warned[0]
    epoch_of(images, seed=1, batch_size=8)
    assert len(images.broken) == 7 and capsys.readouterr().err == ""  # each gives one warning
    # Nine readable images fill two batches of 8 by repetition; seven do not fill one.
    few = images[np.isin(np.arange(37), [*left[:9], *broken])]
    ids = epoch_of(few, seed=0, batch_size=8)[0].reshape(-1, 8)
    assert len(ids) == 2 and all(len({*batch}) == 8 for batch in ids)
    with pytest.raises(UserError, match=r"found 7 of 14 images unreadable"):
        epoch_of(images[np.isin(np.arange(37), [*left[:7], *broken])], seed=0, batch_size=8)
    capsys.readouterr()
    # in_order yields black images for them, and lists them.
    in_order = np.concatenate(list(images.in_order(8)))
    assert images.unread == {*broken} and not in_order[broken].any()
    np.testing.assert_array_equal(np.delete(in_order, broken, 0), np.delete(pixels, broken, 0))
    # A restored file is read again.
    pathlib.Path(paths[broken[0]]).write_bytes(whole)
    again = np.concatenate(list(images.in_order(8)))
    assert images.unread == {*broken[1:]} and np.array_equal(again[broken[0]], pixels[broken[0]])
    for path in paths[:30]:
        spoil(path)
    with pytest.raises(UserError, match=r"found \d+ of 37 images unreadable, such as"):
        epoch_of(images, seed=2, batch_size=8)


def test_a_file_that_becomes_unreadable_during_an_epoch_raises_by_default(tmp_path):
    paths = [*image_files.write_tree(tmp_path, {"train/x/a": 20, "train/y/b": 17, "test/x/a": 1})]
    images = load(tmp_path, image_size=6, stream=True)["train"].image
    order = epoch_of(images, seed=0, batch_size=8)[0]
    spoil(paths[order[20]])
    seen = []
    with pytest.raises(
        UserError, match=rf"found an unreadable image: {paths[order[20]]} \(no JPEG.*data\.on_unreadable=skip"
    ):
        for ids, _ in images.shuffled(8, seed=0):
            seen += ids.tolist()
    assert seen == order[:16].tolist()


def test_fingerprints_depend_on_names_sizes_and_selection_not_on_the_folder(tmp_path):
    prints = []
    for folder, change in (("a", None), ("b", None), ("c", "rename"), ("d", "rewrite"), ("e", "resize")):
        paths = [*image_files.write_tree(tmp_path / folder, image_files.TREE)]
        if change == "rename":
            os.rename(paths[0], paths[0] + ".png")
        if change == "rewrite":
            image_files.write(tmp_path / folder / "train/x/a/00.png", image_files.pixels(99, 30, 30))
        size = 4 if change == "resize" else 5
        prints.append(load(tmp_path / folder, image_size=size, stream=True)["train"].fingerprint())
    assert prints[0] == prints[1] and len(set(prints)) == 4
    some = load(tmp_path / "a", image_size=5, stream=True, coarse_classes=(0,))["train"].fingerprint()
    assert some not in prints


# End to end.


def own_config(root, **overrides):
    values = {
        "data.source": f"folder:{root}",
        "data.image_size": 8,
        "views.mean": (0.5, 0.5, 0.5),
        "views.std": (0.3, 0.3, 0.3),
        "train.batch_size": 16,
        "eval.recall_at": (1,),
        "checkpoint.every_epochs": 1,
    }
    return small_config(**(values | overrides))


def test_a_streamed_run_resumes_exactly_and_lists_the_skipped_files(tmp_path, monkeypatch, trains):
    paths = [*image_files.write_tree(tmp_path / "d", {"train/x": 20, "train/y": 20, "test/x": 6, "test/y": 6})]
    for path in (paths[0], paths[45]):
        spoil(path)
    config = own_config(tmp_path / "d", **{"data.stream": True, "data.on_unreadable": "skip", "train.epochs": 2})
    expected = trains(config, tmp_path / "whole")
    assert {"coarse/map", "coarse/recall@1"} <= expected.keys() and "map" not in expected  # no fine labels
    listed = (tmp_path / "whole" / "broken.txt").read_text().splitlines()
    assert [line.split(" (")[0] for line in listed] == [f"train: {paths[0]}", f"test: {paths[45]}"]

    epoch, calls = FolderImages.shuffled, []

    def stopped(self, *args, **kwargs):
        calls.append(kwargs["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return epoch(self, *args, **kwargs)

    monkeypatch.setattr(FolderImages, "shuffled", stopped)
    with pytest.raises(KeyboardInterrupt):
        trains(config, tmp_path / "stopped")
    assert trains(config, tmp_path / "stopped") == expected
    assert len(calls) == 3 and calls[0] != calls[1] == calls[2]

    # A file that becomes unreadable later: the run finishes and lists it.
    monkeypatch.setattr(FolderImages, "shuffled", lambda self, *args, **kwargs: (
        spoil(paths[7]) or epoch(self, *args, **kwargs)))  # fmt: skip
    later = trains(config, tmp_path / "later")
    assert later.keys() == expected.keys() and np.isfinite(list(later.values())).all()
    assert (tmp_path / "later" / "broken.txt").read_text().splitlines() == [listed[0], f"train: {paths[7]}", listed[1]]


def test_files_unreadable_later_are_in_no_gallery_memory_or_queue(tmp_path, monkeypatch):
    paths = [*image_files.write_tree(tmp_path / "d", {"train/x": 20, "train/y": 20, "test/x": 6, "test/y": 6})]
    config = own_config(
        tmp_path / "d", **{"data.stream": True, "data.on_unreadable": "skip", "eval.layers": ("trunk",)}
    )
    run = experiment.load(config)
    options = {"data.stream": True, "data.on_unreadable": "skip", "queue.size": 64}
    with_queue = experiment.load(own_config(tmp_path / "d", method="selfcon", **options))
    spoil(paths[3])
    queued = np.asarray(restore.initial_state(with_queue).queue.label)
    assert np.array_equal(queued, np.resize(np.repeat([0, 1], 20)[1:], 64))  # 39 keys, then from the first again
    state, memory = restore.initial(run)
    label = np.asarray(memory.label)[0]
    assert label[3] == -1 and np.array_equal(np.delete(label, 3), np.repeat([0, 1], 20)[1:])
    galleries, evaluate = [], retrieval_metrics.evaluate

    def seen(test, gallery, **options):
        galleries.append(gallery)
        return evaluate(test, gallery, **options)

    monkeypatch.setattr(retrieval_metrics, "evaluate", seen)
    experiment.evaluate(run, state)
    assert len(galleries[0].embedding) == len(galleries[0].labels["coarse"]) == 39
    embeddings = split_features(run, state, "train")
    assert embeddings.id.tolist() == [f"train/{row}" for row in range(40) if row != 3]
    assert embeddings.filename.tolist() == [path for path in paths[:40] if path != paths[3]]
    assert embeddings.coarse_label.tolist() == ["x"] * 19 + ["y"] * 20 and len(embeddings.embedding) == 39
    for path in paths[:40]:
        spoil(path)
    with pytest.raises(UserError, match=rf"^found 40 of 40 images unreadable, such as {paths[3]}; check the disk"):
        experiment.evaluate(run, state)
