"""The Grocery Store Dataset prepared from the layout of its repository, whose folders are of unequal depth."""

import numpy as np
import PIL.Image
import pytest

from grafit_jax.data import sources
from grafit_jax.data.datasets import grocery
from grafit_jax.errors import UserError
from helpers.pixels import pil_resized, random_images

CLASSES = """Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic Image Path (str)
Gala,0,Apple,0,/a.jpg
Pink-Lady,1,Apple,0,/b.jpg
Kiwi,2,Kiwi,1,/c.jpg
"""
# Split -> folder and file of each photo, with its fine and coarse class. Kiwi has one variety and no folder for it.
PHOTOS = {
    "train": (("Fruit/Apple/Gala/1.jpg", 0, 0), ("Fruit/Apple/Pink-Lady/2.jpg", 1, 0), ("Fruit/Kiwi/3.jpg", 2, 1)),
    "val": (("Fruit/Kiwi/1.jpg", 2, 1),),
    "test": (("Fruit/Apple/Gala/1.jpg", 0, 0), ("Fruit/Kiwi/2.jpg", 2, 1)),
}


def clone(folder, side=40):
    """Writes a clone with few photos of `side` x 2 `side` pixels."""
    root = folder / "dataset"
    for split, photos in PHOTOS.items():
        lines = ""
        for i, (name, fine, coarse) in enumerate(photos):
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            smooth = random_images(len(split) + i, 1)[0]
            PIL.Image.fromarray(smooth).resize((2 * side, side)).save(path, quality=95)
            lines += f"{split}/{name}, {fine}, {coarse}\n"
        (root / f"{split}.txt").write_text(lines)
    (root / grocery.CLASSES).write_text(CLASSES)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grocery")
    numbers = grocery.prepare(clone(folder / "clone", side=352), str(folder / "tfds"))[1]
    assert numbers == {"train": 3, "validation": 1, "test": 2}
    return folder


@pytest.mark.parametrize(("variant", "split"), [("", "test"), ("test", "test"), ("validation", "val")])
def test_photos_of_unequal_depth_with_both_levels(prepared, variant, split, capsys):
    found = sources.load(source="tfds:grocery", data_dir=str(prepared / "tfds"), image_size=32, variant=variant)
    assert f"found 3 training and {len(PHOTOS[split])} test images; expected 2640 and" in capsys.readouterr().err
    for records, of_split in ((found["train"], "train"), (found["test"], split)):
        assert records.label_names == ("Gala", "Pink-Lady", "Kiwi")
        assert records.train_names == ("Apple", "Kiwi")
        assert len(records) == len(PHOTOS[of_split])
        for name, fine, coarse in PHOTOS[of_split]:
            original = np.asarray(PIL.Image.open(prepared / "clone" / "dataset" / of_split / name))
            distance = np.abs(records.image - pil_resized(original, 32).astype(float)).mean(axis=(1, 2, 3))
            row = distance.argmin()
            assert distance[row] < 5 and (records.label[row], records.train_label[row]) == (fine, coarse)


def test_the_list_beside_it_has_a_third_level(prepared, capsys):
    (path,) = (prepared / "tfds").glob(f"grocery/*/{grocery.LIST}")
    found = sources.load(source=f"csv:{path}", image_size=32, test_split="test")
    assert found["train"].train_level == "group" and len(found["train"]) == 3 and len(found["test"]) == 2
    names = {name: level.names for name, level in found["test"].levels.items()}
    assert names == {"group": ("Fruit",), "class": ("Apple", "Kiwi"), "variety": ("Gala", "Kiwi", "Pink-Lady")}
    assert found["test"].label.tolist() == [0, 1]


def test_photos_are_scaled_by_their_shorter_side_and_small_ones_are_kept(prepared, tmp_path):
    import tensorflow_datasets as tfds

    example = next(iter(tfds.load("grocery", data_dir=prepared / "tfds", split="test", shuffle_files=False)))
    assert example["image"].shape == (176, 352, 3) and set(example) == {"id", "image", "coarse_label", "label"}
    path = tmp_path / "kept.jpg"
    PIL.Image.new("RGB", (200, 176)).save(path, quality=50)
    assert grocery._scaled(path) == path.read_bytes()


def replaced(name, old, new):
    def change(root):
        path = root / name
        path.write_text(path.read_text().replace(old, new))

    return change


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda root: (root / "val").rename(root / "other"), r"val: found no such folder; expected train, val, test"),
        (lambda root: (root / "test.txt").unlink(), r"test\.txt; expected that of the Grocery Store Dataset in"),
        (replaced("classes.csv", "Kiwi,2,", "Kiwi,7,"), r"classes\.csv: found class numbers with gaps"),
        (replaced("train.txt", ", 2, 1", ", 3, 1"), r"train\.txt: found classes 3 and 1 for train/Fruit/Kiwi/3\.jpg"),
        (replaced("train.txt", ", 2, 1", ", two, 1"), r"train\.txt cannot be read"),
        (replaced("val.txt", "Kiwi/1", "Kiwi/9"), r"Kiwi/9\.jpg: found no such image, but val\.txt lists it"),
    ],
)  # fmt: skip
def test_an_invalid_clone_is_refused_before_anything_is_written(tmp_path, broken, message):
    broken(clone(tmp_path / "clone") / "dataset")
    with pytest.raises(UserError, match=message) as error:
        grocery.prepare(tmp_path / "clone", str(tmp_path / "tfds"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "tfds").exists()
