"""`sources.load` of TFDS data sets: a small generated one, and CIFAR-100 if it is prepared."""

import sys

import numpy as np
import pytest

from grafit_jax import errors
from grafit_jax.data import sources
from grafit_jax.errors import UserError
from helpers.tfds_data import make_builder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    make_builder(folder)
    return folder


def test_without_tensorflow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"^tfds:cifar100: found no TensorFlow; use `pip install -e '\.\[tfds\]'`\.$"):
        sources.load(source="tfds:cifar100")
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "grafit_jax" / "errors.py"))  # as a wheel is installed
    with pytest.raises(UserError, match=r"use `pip install 'grafit_jax\[tfds\]'`\.$"):
        sources.load(source="tfds:cifar100")


def read_files(folder, split):
    """Reads images and labels from the TFRecord files in order, without TFDS."""
    import tensorflow as tf

    files = sorted(str(p) for p in folder.glob(f"*/*/*-{split}.tfrecord-*"))
    assert len(files) == 3
    spec = {k: tf.io.FixedLenFeature([], tf.int64) for k in ("label", "coarse_label")}
    spec |= {"image": tf.io.FixedLenFeature([], tf.string)}
    rows = [tf.io.parse_single_example(record, spec) for file in files for record in tf.data.TFRecordDataset(file)]
    images = np.stack([tf.io.decode_png(row["image"]).numpy() for row in rows])
    return images, *(np.array([int(row[key]) for row in rows]) for key in ("label", "coarse_label"))


def test_tfds_images_are_in_file_order(tiny):
    loaded = sources.load(source="tfds:tiny_hierarchy", data_dir=str(tiny))
    again = sources.load(source="tfds:tiny_hierarchy", data_dir=str(tiny))
    for split, records in loaded.items():
        image, label, coarse_label = read_files(tiny, split)
        np.testing.assert_array_equal(records.image, image)
        np.testing.assert_array_equal(records.label, label)
        np.testing.assert_array_equal(records.train_label, coarse_label)
        rng = np.random.default_rng(len(split))
        generated = sorted(rng.integers(0, 256, (6, 5, 3), np.uint8).tobytes() + bytes([i % 6]) for i in range(90))
        pairs = zip(records.image, records.label, strict=True)
        assert sorted(image.tobytes() + bytes([y]) for image, y in pairs) == generated
        assert records.fingerprint() == again[split].fingerprint()
        assert records.label_names == tuple("abcdef")
        assert records.train_names == tuple("xyz")
        assert records.image.dtype == np.uint8
        assert records.label.dtype == records.train_label.dtype == np.int32


def test_tfds_selects_coarse_classes(tiny):
    loaded = sources.load(source="tfds:tiny_hierarchy", data_dir=str(tiny), coarse_classes=(2, 0))
    for split, records in loaded.items():
        image, label, _ = read_files(tiny, split)
        kept = np.isin(label, [0, 1, 4, 5])
        np.testing.assert_array_equal(records.image, image[kept])
        np.testing.assert_array_equal(records.label, np.array([0, 1, -1, -1, 2, 3])[label[kept]])
        np.testing.assert_array_equal(records.train_label, np.array([0, 0, -1, -1, 1, 1])[label[kept]])
        assert records.label_names == tuple("abef")
        assert records.train_names == tuple("xz")


def test_tfds_decodes_only_images_of_the_selected_classes(tiny, monkeypatch):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    decoded = []
    decode = tfds.features.Image.decode_example

    def counted(self, example):
        tf.numpy_function(lambda: decoded.append(1) or np.int64(0), [], tf.int64)
        return decode(self, example)

    monkeypatch.setattr(tfds.features.Image, "decode_example", counted)
    sources.load(source="tfds:tiny_hierarchy", data_dir=str(tiny), coarse_classes=(1,))
    assert len(decoded) == 60  # of 180


def test_tfds_leaves_accelerators_to_jax(tiny, monkeypatch):
    import tensorflow as tf

    calls = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *a: calls.append(a))
    sources.load(source="tfds:tiny_hierarchy", data_dir=str(tiny))
    assert calls and set(map(repr, calls)) == {repr(([], "GPU"))}


def test_tfds_with_withheld_fine_labels(tmp_path):
    make_builder(tmp_path, withheld=True)
    loaded = sources.load(source="tfds:tiny_hierarchy", data_dir=str(tmp_path), coarse_classes=(1,))
    assert loaded["test"].label is None
    assert len(loaded["test"]) == 30
    assert set(loaded["train"].label.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coarse": False}, r"features (label, image|image, label) but no coarse_label; expected image, label and"),
        ({"splits": ("train",)}, "found the splits train but no test; expected train and test; use another data set"),
        (
            {"shape": (None, None, 3)},
            r"found images of shape \(None, None, 3\); expected one size for all; set data.image_size",
        ),
        (
            {"file_format": "array_record"},
            "found array_record files in .*; expected tfrecord; run `tfds build tiny_hierarchy --data_dir=DIR",
        ),
    ],
)
def test_unsupported_tfds_data_set_is_refused(tmp_path, options, message):
    make_builder(tmp_path, **options)
    with pytest.raises(UserError, match=message) as error:
        sources.load(source="tfds:tiny_hierarchy", data_dir=str(tmp_path))
    assert "\n" not in str(error.value)


def test_tfds_not_prepared(tmp_path):
    with pytest.raises(UserError) as error:
        sources.load(source="tfds:cifar100", data_dir=str(tmp_path))
    assert f"run `tfds build cifar100 --data_dir={tmp_path}`" in str(error.value)
    assert not list(tmp_path.iterdir())  # nothing was downloaded


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar1000", r"found no TFDS data set cifar1000 \(did you mean 'cifar100'\?\); expected a name from"),
        (
            "cifar100:9.9.9",
            r"tfds:cifar100:9\.9\.9: found no such TFDS data set \(.*only: 3\.0\.2.*\); expected tfds:NAME, tfds",
        ),
        ("no name", r"tfds:no name: found no such TFDS data set \(Parsing .*\); expected tfds:NAME"),
    ],
)
def test_tfds_unknown_name(tmp_path, name, message):
    with pytest.raises(UserError, match=message) as error:
        sources.load(source=f"tfds:{name}", data_dir=str(tmp_path))
    assert "\n" not in str(error.value)


# CIFAR-100


def test_cifar100(cifar100):
    loaded = sources.load(source="tfds:cifar100", data_dir=cifar100)
    assert {s: r.image.shape for s, r in loaded.items()} == {"train": (50000, 32, 32, 3), "test": (10000, 32, 32, 3)}
    for records, per_class in ((loaded["train"], 500), (loaded["test"], 100)):
        assert np.bincount(records.label).tolist() == [per_class] * 100
        pairs = np.unique(np.stack([records.train_label, records.label]), axis=1)
        assert np.bincount(pairs[0]).tolist() == [5] * 20
    fish = loaded["test"].train_names.index("fish")
    fine = np.unique(loaded["test"].label[loaded["test"].train_label == fish])
    assert {loaded["test"].label_names[y] for y in fine} == {"aquarium_fish", "flatfish", "ray", "shark", "trout"}


def test_cifar100_of_four_coarse_classes(cifar100):
    loaded = sources.load(source="tfds:cifar100", data_dir=cifar100, coarse_classes=(0, 1, 2, 3))
    assert {s: len(r) for s, r in loaded.items()} == {"train": 10000, "test": 2000}
    for records, per_class in ((loaded["train"], 500), (loaded["test"], 100)):
        assert np.bincount(records.label).tolist() == [per_class] * 20
        assert np.bincount(records.train_label).tolist() == [per_class * 5] * 4
        assert len(records.label_names) == 20
        assert records.train_names == ("aquatic_mammals", "fish", "flowers", "food_containers")
        whale = records.label[records.label == records.label_names.index("whale")]
        assert len(whale) == per_class
        assert set(records.train_label[records.label == whale[0]].tolist()) == {0}


def test_missing_or_damaged_tfds_files_give_a_one_line_error(tmp_path):
    make_builder(tmp_path / "data")
    images = sources.load(source="tfds:tiny_hierarchy", data_dir=str(tmp_path / "data"), stream=True)["train"].image
    file = sorted((tmp_path / "data").rglob("*-train.tfrecord-*"))[1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"found unreadable files of tiny_hierarchy/1\.0\.0 \(.*corrupted"):
        list(images.shuffled(10, seed=0, buffer_size=10))
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    for read in (lambda: list(images.shuffled(10, seed=0, buffer_size=10)), images.read):
        with pytest.raises(UserError, match=r"found unreadable files of .* \(.*\); restore them or prepare"):
            read()
