import numpy as np
import pytest

from grafit_jax.data import hierarchy
from grafit_jax.data.records import Records, two_levels
from grafit_jax.errors import UserError


def make(label, coarse_label, label_names="abcdef", coarse_names=("x", "y", "z")):
    image = np.arange(len(coarse_label), dtype=np.uint8).reshape(-1, 1, 1, 1)
    label = None if label is None else np.array(label, np.int32)
    return Records(image, two_levels(label, np.array(coarse_label, np.int32), label_names, coarse_names))


def select(records, classes):
    return hierarchy.select({"only": records}, classes)["only"]


def test_a_fine_label_has_one_coarse_label_over_all_splits():
    first = make([4, 0, 1, 4, 0], [2, 1, 0, 2, 1])
    hierarchy.check_nested([first.levels, make(None, [0, 1]).levels, make([1, 0], [0, 1]).levels])
    with pytest.raises(UserError, match=r"found fine label 4 under coarse labels 0 and 2; .* correct"):
        hierarchy.check_nested([make([4, 0, 1, 4], [2, 1, 0, 0]).levels])
    with pytest.raises(UserError, match=r"found fine label 0 under coarse labels 0 and 1; .* correct"):
        hierarchy.check_nested([first.levels, make([0], [0]).levels])


def test_trainable():
    # A coarse class without images is allowed.
    hierarchy.check_trainable(make([0, 1, 2, 2], [0, 0, 2, 2]), neighbours=True)
    hierarchy.check_trainable(make(None, [0, 0]), neighbours=True)
    hierarchy.check_trainable(make(None, [0, 1, 1, 2]), neighbours=False)  # as for cross-entropy


@pytest.mark.parametrize(
    ("coarse_label", "message"),
    [
        ([], "found 0 training images; expected at least 2"),
        ([1], "found 1 training images; expected at least 2"),
        ([0, 1, 1, 2], r"single training image of class 0 \(x\) and of 1 other classes; expected at least 2 for"),
        (
            [0, 0, 1, 2, 2],
            r"found a single training image of class 1 \(y\); expected at least 2 for the k-NN loss; add",
        ),
    ],
)
def test_not_trainable(coarse_label, message):
    with pytest.raises(UserError, match=message):
        hierarchy.check_trainable(make(None, coarse_label), neighbours=True)


@pytest.mark.parametrize("classes", [(0, 2), (2, 0), [2, 0]])
def test_select(classes):
    records = make([5, 3, 0, 1, 5, 3], [2, 1, 0, 2, 2, 1])
    chosen = select(records, classes)
    assert chosen.image.ravel().tolist() == [0, 2, 3, 4]
    assert chosen.label.tolist() == [2, 0, 1, 2]
    assert chosen.label_names == ("a", "b", "f")
    assert chosen.train_label.tolist() == [1, 0, 1, 1]
    assert chosen.train_names == ("x", "z")
    assert chosen.label.dtype == chosen.train_label.dtype == np.int32


def test_select_by_names():
    records = make([0, 1, 2], [0, 1, 2])
    for classes in (("z", "x"), ("x", 2), (0, "z")):
        chosen = select(records, classes)
        assert chosen.image.ravel().tolist() == [0, 2] and chosen.train_names == ("x", "z")
    with pytest.raises(UserError, match=r"found 'w'.*; expected names such as x, or numbers from 0 to 2"):
        select(records, ("w",))
    with pytest.raises(UserError, match=r"found a class twice in coarse_classes = \('x', 0\)"):
        select(records, ("x", 0))


def test_select_numbers_fine_classes_over_all_splits():
    # No test image of fine class 0, and no training image of fine class 3.
    splits = {"train": make([0, 1, 2], [0, 0, 1]), "test": make([1, 2, 3], [0, 1, 0])}
    chosen = hierarchy.select(splits, (0,))
    assert chosen["test"].label_names == chosen["train"].label_names == ("a", "b", "d")
    assert chosen["train"].label.tolist() == [0, 1] and chosen["test"].label.tolist() == [1, 2]


def test_select_without_fine_labels():
    chosen = select(make(None, [2, 1, 0, 2]), (1, 2))
    assert chosen.label is None
    assert chosen.train_label.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((0, 3), "coarse_classes: found 3; expected numbers from 0 to 2"),
        ((-1,), "coarse_classes: found -1; expected numbers from 0 to 2"),
        ((0, 1), r"found no image of coarse class 1 \(y\) among the 2 of split only; remove it from coarse_classes"),
        ((0, 2, 0), r"found a class twice in coarse_classes = \(0, 2, 0\); expected each class once"),
    ],
)
def test_select_refuses_invalid_classes(classes, message):
    with pytest.raises(UserError, match=message):
        select(make([0, 1], [0, 2]), classes)
