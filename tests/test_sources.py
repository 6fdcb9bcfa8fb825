import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from grafit_jax.data import sources
from grafit_jax.data.records import Records, two_levels
from grafit_jax.errors import UserError


def write_npz(folder, split, name="some_", **changes):
    """Writes two coarse classes of two fine classes with five images each; `changes` to None drop an array."""
    rng = np.random.default_rng(len(split))
    label = np.repeat(np.arange(4), 5)
    arrays = {"image": rng.integers(0, 256, (20, 3, 2, 1), np.uint8), "label": label, "coarse_label": label // 2}
    arrays = {key: a for key, a in (arrays | changes).items() if a is not None}
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}{split}.npz", **arrays)
    return arrays


def load_npz(folder, **options):
    return sources.load(source=f"npz:{folder}", **options)


def multiset(*splits):
    return sorted(r.image[i].tobytes() + bytes([r.label[i]]) for r in splits for i in range(len(r)))


# Records


def make_records():
    image = np.arange(6, dtype=np.uint8).reshape(3, 2, 1, 1)
    return Records(image, two_levels(np.array([0, 1, 1], np.int32), np.array([0, 0, 1], np.int32), "ab", "xy"))


def test_records_length_and_ids():
    records = make_records()
    assert len(records) == 3
    assert records.id.dtype == np.int32
    assert records.id.tolist() == [0, 1, 2]


def test_fingerprint():
    records = make_records()
    data = b"(3, 2, 1, 1)" + bytes(range(6))
    data += b"(3,)" + np.array([0, 1, 1], "<i4").tobytes() + b"(3,)" + np.array([0, 0, 1], "<i4").tobytes()
    assert records.fingerprint() == hashlib.sha256(data).hexdigest()[:16]


def test_fingerprint_changes_with_the_data():
    records = make_records()
    image = records.image.copy()
    image[2, 1] += 1
    label, coarse_label = records.label, records.train_label
    changes = [
        (records.image, label, coarse_label),
        (image, label, coarse_label),
        (records.image.reshape(3, 1, 2, 1), label, coarse_label),
        (records.image, np.array([0, 1, 0], np.int32), coarse_label),
        (records.image, None, coarse_label),
        (records.image, label, np.array([0, 1, 1], np.int32)),
    ]
    changed = [Records(image, two_levels(*labels, "ab", "xy")) for image, *labels in changes]
    assert (
        len({other.fingerprint() for other in changed}) == len({other.content() for other in changed}) == len(changes)
    )
    other_names = Records(records.image, two_levels(label, coarse_label, "cd", "xy"))
    assert other_names.fingerprint() == records.fingerprint() == changed[0].fingerprint()
    assert other_names.content() == records.content()


def test_the_content_is_the_same_in_any_order(digits):
    train = digits["train"]
    order = np.random.default_rng(0).permutation(len(train))
    moved = dataclasses.replace(
        train.relabel(lambda _, level: level._replace(label=level.label[order])), image=train.image[order]
    )
    assert moved.content() == train.content() and moved.fingerprint() != train.fingerprint()
    # Labels belong to their images, and a repeated image counts twice.
    assert dataclasses.replace(moved, image=train.image).content() != train.content()
    first, second, *_ = train.image
    twice = [np.stack([first, *images, second]) for images in ([first], [second])]
    labels = two_levels(np.zeros(3, np.int32), np.zeros(3, np.int32), "a", "x")
    assert len({Records(image, labels).content() for image in twice}) == 2


# digits


@pytest.fixture(scope="module")
def digits():
    return sources.load(source="digits", data_dir=None)


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    levels = np.array([0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255])  # v * 255 / 16
    image = levels[raw.images.astype(int)].astype(np.uint8)
    expected = sorted(i.tobytes() + bytes([y]) for i, y in zip(image, raw.target, strict=True))
    # Every image is in one split, once.
    assert multiset(*digits.values()) == expected
    for records in digits.values():
        assert records.image.dtype == np.uint8
        assert records.image.shape == (len(records), 8, 8, 1)


def test_digits_halves_are_stratified(digits):
    from sklearn.datasets import load_digits

    assert {s: len(r) for s, r in digits.items()} == {"train": 899, "test": 898}
    per_class = np.bincount(load_digits().target)
    for records in digits.values():
        assert np.all(np.abs(np.bincount(records.label, minlength=10) - per_class / 2) <= 1)


def test_digits_halves_are_fixed(digits):
    # Golden values: another split would invalidate the README's results.
    assert {s: r.fingerprint() for s, r in digits.items()} == {"train": "01016c476db8dc39", "test": "a0a0e430519db19a"}


def test_digits_coarse_classes(digits):
    for records in digits.values():
        assert records.train_names == ("closed loop", "no loop")
        assert records.label_names == tuple("0123456789")
        assert set(zip(records.label.tolist(), records.train_label.tolist(), strict=True)) == {
            *[(0, 0), (6, 0), (8, 0), (9, 0)],
            *[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (7, 1)],
        }
        assert records.label.dtype == records.train_label.dtype == np.int32


def test_digits_of_one_coarse_class(digits):
    chosen = sources.load(source="digits", data_dir=None, coarse_classes=(0,))
    for split, records in chosen.items():
        kept = np.isin(digits[split].label, [0, 6, 8, 9])
        np.testing.assert_array_equal(records.image, digits[split].image[kept])
        assert records.label_names == ("0", "6", "8", "9")
        names = [records.label_names[y] for y in records.label]
        assert names == [str(y) for y in digits[split].label[kept]]
        assert set(records.train_label.tolist()) == {0}


# holdout


def test_holdout_comes_from_the_training_split(digits):
    held = sources.load(source="digits", data_dir=None, holdout=0.2)
    assert multiset(*held.values()) == multiset(digits["train"])
    assert len(held["test"]) == 179  # floor(0.2 * 899)
    share = np.bincount(held["test"].label) / np.bincount(digits["train"].label)
    assert np.all(np.abs(share - 0.2) < 1 / 80)  # at least 80 images per class
    # Both parts keep the order of the split.
    position = {image.tobytes(): i for i, image in enumerate(digits["train"].image)}
    for records in held.values():
        places = [position[image.tobytes()] for image in records.image]
        assert places == sorted(places)


def test_holdout_is_fixed():
    prints = [sources.load(source="digits", holdout=0.2)["test"].fingerprint() for _ in range(2)]
    assert prints == ["cdd4d11dc5a9ca96"] * 2


def test_holdout_is_drawn_at_random_within_a_class(tmp_path):
    label = np.zeros(100, int)
    image = np.arange(100, dtype=np.uint8).reshape(-1, 1, 1, 1)
    for split in sources.SPLITS:
        write_npz(tmp_path, split, image=image, label=label, coarse_label=label)
    test = load_npz(tmp_path, holdout=0.29)["test"]
    assert len(test) == 29  # though 0.29 * 100 is 28.999999999999996
    assert np.diff(test.image.ravel().astype(int)).max() > 5  # evenly spaced images would be 3 or 4 apart


def test_holdout_without_fine_labels_is_stratified_by_coarse_ones(tmp_path):
    coarse_label = np.repeat([0, 1], [15, 5])
    for split in sources.SPLITS:
        write_npz(tmp_path, split, label=None, coarse_label=coarse_label)
    held = load_npz(tmp_path, holdout=0.2)
    assert np.bincount(held["test"].train_label).tolist() == [3, 1]
    assert held["test"].label is None


@pytest.mark.parametrize("holdout", [-0.1, 1.0, 1.5, float("nan")])
def test_holdout_out_of_range(holdout):
    with pytest.raises(UserError, match=f"found holdout = {holdout}; expected a share .* at least 0 and below 1"):
        sources.load(source="digits", data_dir=None, holdout=holdout)


def test_holdout_that_leaves_a_split_empty(tmp_path):
    for split in sources.SPLITS:
        write_npz(tmp_path, split)
    with pytest.raises(UserError, match=r"found no image for test with holdout = 0\.04; use a share"):
        load_npz(tmp_path, holdout=0.04)  # 0.8 images of 20


# npz


def test_npz_round_trip(tmp_path):
    written = {split: write_npz(tmp_path, split) for split in sources.SPLITS}
    loaded = load_npz(tmp_path)
    assert set(loaded) == {"train", "test"}
    for split, records in loaded.items():
        np.testing.assert_array_equal(records.image, written[split]["image"])
        np.testing.assert_array_equal(records.label, written[split]["label"])
        np.testing.assert_array_equal(records.train_label, written[split]["coarse_label"])
        assert records.image.dtype == np.uint8
        assert records.label.dtype == records.train_label.dtype == np.int32
        assert records.label_names == ("0", "1", "2", "3")
        assert records.train_names == ("0", "1")
    assert not np.array_equal(loaded["train"].image, loaded["test"].image)


def test_npz_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for split in sources.SPLITS:
        write_npz(tmp_path / "set", split)
    assert len(sources.load(source="npz:~/set")["train"]) == 20


def test_npz_selects_with_one_numbering_for_both_splits(tmp_path):
    write_npz(tmp_path, "train")
    # Of the fine classes 2 and 3 in coarse class 1, the test split has only 3.
    write_npz(tmp_path, "test", label=np.repeat([0, 3], 10), coarse_label=np.repeat([0, 1], 10))
    loaded = load_npz(tmp_path, coarse_classes=(1,))
    assert loaded["train"].label.tolist() == [0] * 5 + [1] * 5
    assert loaded["test"].label.tolist() == [1] * 10
    assert loaded["train"].label_names == loaded["test"].label_names == ("2", "3")
    assert loaded["test"].train_names == ("1",)


@pytest.mark.parametrize("withheld", [None, np.full(20, -1)])
def test_npz_without_fine_labels_in_test(tmp_path, withheld):
    write_npz(tmp_path, "train")
    write_npz(tmp_path, "test", label=withheld)
    loaded = load_npz(tmp_path, coarse_classes=(1,))
    assert loaded["test"].label is None
    assert loaded["train"].label_names == loaded["test"].label_names == ("2", "3")
    assert len(loaded["test"]) == 10


LABEL = np.repeat(np.arange(4), 5)
MINUS = np.where(LABEL == 3, -1, LABEL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image": None},
            r"some_test\.npz: found the arrays label, coarse_label but no image; write it with numpy",
        ),
        ({"coarse_label": None}, r"some_test\.npz: found the arrays image, label but no coarse_label"),
        (
            {"image": np.zeros((20, 2, 2, 1))},
            r"split test: found images float64 \[20, 2, 2, 1\]; expected uint8 \[N, H, W, C\]",
        ),
        ({"image": np.zeros((20, 2, 2), np.uint8)}, r"found images uint8 \[20, 2, 2\]; expected uint8 \[N, H, W, C\]"),
        ({"image": np.zeros((20, 3, 8, 8), np.uint8)}, "with 8 channels; expected 1 or 3, in the last dimension"),
        (
            {"image": np.zeros((20, 3, 2, 3), np.uint8)},
            "found 1 channels in train and 3 channels in test; expected the same number",
        ),
        (
            {"image": np.zeros((0, 3, 2, 1), np.uint8)},
            r"split test: found images \[0, 3, 2, 1\]; expected at least one",
        ),
        ({"label": LABEL[:19]}, r"split test: found label of int64 \[19\]; expected integers \[20\]"),
        ({"label": LABEL.astype(float)}, r"found label of float64 \[20\]; expected integers \[20\]"),
        ({"coarse_label": LABEL[:, None]}, r"found coarse_label of int64 \[20, 1\]; expected integers \[20\]"),
        ({"label": MINUS}, "split test: found label -1; expected no negative label; number the classes from 0"),
        ({"coarse_label": np.full(20, -1)}, "found coarse_label -1; expected no negative label"),
        (
            {"label": LABEL + 2**20},
            "label: found label 1048579; expected labels below 1048576; number the classes from 0",
        ),
        ({"label": np.array([str(y) for y in LABEL])}, r"found label of <U1 \[20\]; expected integers \[20\]"),
        ({"label": LABEL.astype(object)}, r"some_test\.npz cannot be read \(Object arrays .*\); write it with"),
        ({"coarse_label": LABEL // 3}, "found fine label 2 under coarse labels 0 and 1; .* correct the labels"),
    ],
)
def test_invalid_npz_is_refused(tmp_path, changes, message):
    write_npz(tmp_path, "train")
    write_npz(tmp_path, "test", **changes)
    with pytest.raises(UserError, match=message) as error:
        load_npz(tmp_path)
    assert "\n" not in str(error.value)


def test_npz_folder_missing(tmp_path):
    with pytest.raises(
        UserError, match=r"npz:.*nowhere: found no such folder; expected one with \*train\.npz and \*test\.npz"
    ):
        load_npz(tmp_path / "nowhere")


def test_npz_file_missing(tmp_path):
    write_npz(tmp_path, "train")
    with pytest.raises(UserError, match=r"found 0 files \*test\.npz; expected one"):
        load_npz(tmp_path)


def test_npz_file_ambiguous(tmp_path):
    for name in ("a_", "b_"):
        write_npz(tmp_path, "train", name=name)
    with pytest.raises(UserError, match=r"found 2 files \*train\.npz \(a_train\.npz, b_train\.npz\); expected one"):
        load_npz(tmp_path)


# errors of all sources


@pytest.mark.parametrize("source", ["digit", "", "tfds:", "npz:", "folder:", "imagenet:x", "digits:2"])
def test_unknown_source(source):
    with pytest.raises(
        UserError, match=f"found source = '{source}'; expected digits, tfds:NAME, npz:DIR, folder:DIR or csv:FILE"
    ):
        sources.load(source=source, data_dir=None)


def test_unknown_coarse_class_is_refused():
    with pytest.raises(UserError, match="coarse_classes: found 2; expected numbers from 0 to 1"):
        sources.load(source="digits", data_dir=None, coarse_classes=(0, 2))


def test_import_and_npz_need_neither_tensorflow_nor_scikit_learn(tmp_path):
    for split in sources.SPLITS:
        write_npz(tmp_path, split)
    code = (
        "import sys; from grafit_jax.data import hierarchy, sources; "
        f"sources.load(source='npz:{tmp_path}', holdout=0.2); "
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
