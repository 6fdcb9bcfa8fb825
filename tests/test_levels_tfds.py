"""Data sets of the catalog with special levels or splits: ImageNet, Flowers, Food, Omniglot."""

import numpy as np
import pytest

from grafit_jax.data import sources
from grafit_jax.data.datasets import catalog
from grafit_jax.data.readers import tfds
from grafit_jax.errors import UserError
from helpers.pixels import pil_resized, random_images
from helpers.tfds_data import in_files, prepare


def examples_of(seed, labels, **further):
    images = random_images(seed, len(labels))
    return [{"image": image, "label": y, **further} for image, y in zip(images, labels, strict=True)]


def check_split(folder, name, records, *of_tfds):
    """Checks that images and fine labels are those of TFDS's splits, concatenated."""
    label, images = zip(*(in_files(folder, name, "label", split) for split in of_tfds), strict=True)
    np.testing.assert_array_equal(records.label, np.concatenate(label))
    expected = np.stack([pil_resized(image, 8) for of_split in images for image in of_split])
    # JPEG decoders differ by a few levels.
    distance = np.abs(records.image - expected)
    assert distance.mean() < 3 if name == "imagenet2012" else distance.max() <= 1


def test_imagenet_has_127_coarse_and_1000_fine_classes(tmp_path):
    labels = {"train": [0, 1, 389, 999, 151], "validation": [151, 2]}
    prepare(tmp_path, "imagenet2012", {s: examples_of(len(s), ys, file_name="x") for s, ys in labels.items()})
    coarse, fine = (
        sources.load(source="tfds:imagenet2012", data_dir=str(tmp_path), image_size=8, train_level=level)
        for level in ("", "fine")
    )
    table = catalog.load_hierarchy("imagenet127")
    for split, of_tfds in (("train", "train"), ("test", "validation")):
        check_split(tmp_path, "imagenet2012", coarse[split], of_tfds)
        np.testing.assert_array_equal(coarse[split].train_label, table.coarse_of_fine[coarse[split].label])
        assert len(coarse[split].train_names) == 127 and len(fine[split].train_names) == 1000
        np.testing.assert_array_equal(fine[split].train_label, fine[split].label)
        np.testing.assert_array_equal(fine[split].labels["coarse"], coarse[split].train_label)
    dog = coarse["test"].train_label[list(coarse["test"].label).index(151)]  # a Chihuahua
    assert coarse["test"].train_names[dog] == "mammal"


@pytest.mark.parametrize(
    ("name", "further", "splits"),
    [
        ("oxford_flowers102", {"file_name": "x"}, {"train": ("train", "validation"), "test": ("test",)}),
        ("food101", {}, {"train": ("train",), "test": ("validation",)}),
    ],
)
def test_data_sets_without_coarse_labels_train_on_the_fine_ones(tmp_path, name, further, splits):
    of_tfds = [split for group in splits.values() for split in group]
    prepare(tmp_path, name, {s: examples_of(i, [3, 100, 7 + i], **further) for i, s in enumerate(of_tfds)}, shards=2)
    loaded = sources.load(source=f"tfds:{name}", data_dir=str(tmp_path), image_size=8)
    for split, group in splits.items():
        records = loaded[split]
        check_split(tmp_path, name, records, *group)
        assert tuple(records.levels) == ("fine",) and tuple(records.labels) == ("",)
        assert records.train_level == sources.usual_level(f"tfds:{name}:1.0.0", ()) == "fine"
        assert records.train_names == records.label_names and len(records.label_names) == int(name[-3:])
    streamed = sources.load(source=f"tfds:{name}", data_dir=str(tmp_path), image_size=8, stream=True)["train"].image
    np.testing.assert_array_equal(streamed.read(), loaded["train"].image)
    for ids, batch in streamed.shuffled(2, seed=0, buffer_size=9):
        np.testing.assert_array_equal(batch, loaded["train"].image[ids])
    with pytest.raises(
        UserError, match=rf"tfds:{name}: found data.train_level = 'coarse'; expected fine, or empty for fine"
    ):
        sources.load(source=f"tfds:{name}", data_dir=str(tmp_path), image_size=8, train_level="coarse")


def test_an_unknown_level_is_refused_before_images_are_read(tmp_path, monkeypatch):
    prepare(tmp_path, "food101", {s: examples_of(i, [3, 100]) for i, s in enumerate(("train", "validation"))})
    monkeypatch.setattr(tfds.StreamedImages, "read", None)
    with pytest.raises(
        UserError, match=r"tfds:food101: found data.train_level = 'genus'; expected fine, or empty for fine"
    ):
        sources.load(source="tfds:food101", data_dir=str(tmp_path), image_size=8, train_level="genus")


# Omniglot

# The alphabet of each character; characters 30 and 31 are in TFDS's train split, 40 and 45 in test.
ALPHABET = {30: 9, 31: 4, 40: 2, 45: 2}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("omniglot")
    rng = np.random.default_rng(0)
    examples = {}
    for split, characters in (("train", (30, 31)), ("test", (40, 45))):
        labels = rng.permutation(np.repeat(characters, 20)).tolist()
        images = random_images(len(split), len(labels), (105, 105))
        examples[split] = [
            {"image": image, "label": y, "alphabet": ALPHABET[y], "alphabet_char_id": 0}
            for image, y in zip(images, labels, strict=True)
        ]
    prepare(folder, "omniglot", examples, shards=3)
    return folder


@pytest.mark.parametrize("variant", ["", "within"])
def test_omniglot_within_has_every_character_in_both_splits(drawings, capsys, variant):
    loaded = sources.load(source="tfds:omniglot", data_dir=str(drawings), image_size=8, variant=variant)
    said = capsys.readouterr().err
    assert "omniglot, variant within: found 28 training and 12 test images; expected 13496 and 5784" in said
    label, images = in_files(drawings, "omniglot", "label", "train")
    seen, expected = {30: 0, 31: 0}, {"train": [], "test": []}
    for row, character in enumerate(label):
        expected["train" if seen[character] < 14 else "test"].append(row)
        seen[character] += 1
    for split, records in loaded.items():
        assert records.label_names == ("30", "31") and records.train_names == ("4", "9")
        np.testing.assert_array_equal(records.label, label[expected[split]] - 30)
        np.testing.assert_array_equal(records.train_label, 1 - records.label)
        resized = np.stack([pil_resized(images[row], 8) for row in expected[split]])
        assert np.abs(records.image - resized).max() <= 1


def test_omniglot_unseen_has_the_splits_of_tfds(drawings):
    loaded = sources.load(source="tfds:omniglot", data_dir=str(drawings), image_size=8, variant="unseen")
    for split, first in (("train", 0), ("test", 2)):
        records = loaded[split]
        label, images = in_files(drawings, "omniglot", "label", split)
        assert records.label_names == ("30", "31", "40", "45") and records.train_names == ("2", "4", "9")
        assert [int(records.label_names[y]) for y in records.label] == label.tolist()
        assert [int(records.train_names[y]) for y in records.train_label] == [ALPHABET[y] for y in label]
        assert np.abs(records.image - np.stack([pil_resized(image, 8) for image in images])).max() <= 1
        assert set(records.label) == {first, first + 1}


@pytest.mark.parametrize("stream", [False, True])
def test_an_alphabet_without_images_in_a_split_is_refused(drawings, stream):
    options = {"variant": "unseen", "coarse_classes": (0,), "stream": stream}  # of the alphabets 2, 4, 9
    with pytest.raises(
        UserError, match=r"found no image of coarse class 0 \(2\) among the 40 of split train; remove it"
    ):
        sources.load(source="tfds:omniglot", data_dir=str(drawings), image_size=8, **options)


def test_full_omniglot(capsys, omniglot):
    loaded = sources.load(source="tfds:omniglot", data_dir=omniglot, image_size=16)
    assert "warning" not in capsys.readouterr().err
    for split, drawn in (("train", 14), ("test", 6)):
        records = loaded[split]
        assert np.bincount(records.label).tolist() == [drawn] * 964 and records.image.shape == (964 * drawn, 16, 16, 3)
        assert len(np.unique(records.train_label)) == len(records.train_names) == 30
        assert 0.8 < records.image.mean() / 255 < 0.98  # black on white
    unseen = sources.load(
        source="tfds:omniglot", data_dir=omniglot, image_size=16, variant="unseen", coarse_classes=(), stream=True
    )
    assert [len(r) for r in unseen.values()] == [19280, 13180]
    alphabets = [set(r.train_label.tolist()) for r in unseen.values()]
    assert list(map(len, alphabets)) == [30, 20] and not alphabets[0] & alphabets[1]
    assert len(unseen["test"].label_names) == 1623
