"""Stanford Cars prepared from local files, and resizing by `sources.load`."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import scipy.io

from grafit_jax.data import sources
from grafit_jax.data.datasets import cars196, catalog
from grafit_jax.errors import UserError
from helpers.pixels import pil_resized, random_images
from helpers.tfds_data import in_files, make_builder

FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")


def make_cars(folder, classes=(1, 2, 196, 100, 1)):
    """Writes a folder in the layout of Stanford Cars, with one image for each of `classes` (from 1) in each split."""
    names = np.empty((1, 196), object)
    names[0] = catalog.load_hierarchy("cars196").label_names
    (folder / "devkit").mkdir()
    scipy.io.savemat(folder / cars196.META, {"class_names": names})
    for split, (images, annotations) in cars196.FILES.items():
        (folder / images).mkdir()
        rows = np.empty((1, len(classes)), [(field, object) for field in FIELDS])
        for i, image in enumerate(random_images(len(split), len(classes))):
            PIL.Image.fromarray(image).save(folder / images / f"{i + 1:05d}.jpg")
            rows[0, i] = (1, 2, 10, 12, classes[i], f"{i + 1:05d}.jpg")
        scipy.io.savemat(folder / annotations, {"annotations": rows})


@pytest.fixture(scope="module")
def cars(tmp_path_factory, cli):
    """A folder with the prepared data set, tfds/, and its source files, manual/."""
    folder = tmp_path_factory.mktemp("cars")
    (folder / "manual").mkdir()
    make_cars(folder / "manual")
    done = cli("prepare", "--dataset=cars196", f"--manual_dir={folder}/manual", f"--data_dir={folder}/tfds")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "warning: cars196, split train: found 5 images; expected 8144; remove " in done.stderr
    return folder


def test_cars_prepared_from_a_folder(cars):
    loaded = sources.load(source="tfds:cars196", data_dir=str(cars / "tfds"), image_size=24)
    for split, (images, _) in cars196.FILES.items():
        records = loaded[split]
        assert records.image.shape == (5, 24, 24, 3)
        assert sorted(records.label) == [0, 0, 1, 99, 195]
        assert records.label_names[195] == "smart fortwo Convertible 2012"
        np.testing.assert_array_equal(
            records.train_label, catalog.load_hierarchy("cars196").coarse_of_fine[records.label]
        )
        # Every image of the folder is present with its label. JPEG decoders differ by a few levels.
        for file, label in zip(sorted((cars / "manual" / images).iterdir()), (0, 1, 195, 99, 0), strict=True):
            expected = pil_resized(np.asarray(PIL.Image.open(file)), 24)
            distance = np.abs(records.image - expected).mean(axis=(1, 2, 3))
            assert distance.min() < 3 < 10 < np.sort(distance)[1]
            assert records.label[distance.argmin()] == label


def test_cars_have_the_features_of_tfds(cars):
    import tensorflow_datasets as tfds

    example = next(iter(tfds.load("cars196", data_dir=cars / "tfds", split="train", shuffle_files=False)))
    assert set(example) == {"image", "label", "bbox", "id"}


def test_cars_not_prepared(tmp_path):
    with pytest.raises(UserError, match=r"run `python experiments/prepare\.py --dataset=cars196 --manual_dir=DIR"):
        sources.load(source="tfds:cars196", data_dir=str(tmp_path), image_size=24)


def remove(name):
    def broken(folder):
        path = folder / name
        path.rename(folder / "elsewhere")

    return broken


def write(name, arrays):
    return lambda folder: scipy.io.savemat(folder / name, arrays)


@pytest.fixture
def in_this_process(monkeypatch):
    """Reads Matlab files without a process of its own, whose imports take most of a test; `cars` has the real one."""
    pool = lambda n, mp_context: ThreadPoolExecutor(n)  # noqa: E731
    monkeypatch.setattr(cars196.concurrent.futures, "ProcessPoolExecutor", pool)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (remove("."), r"m: found no such folder; expected cars_train, cars_test, devkit/cars_meta\.mat, "),
        (remove("cars_test"), r"cars_test: found no such folder; expected cars_train, "),
        (
            remove(cars196.META),
            r"found no file .*devkit/cars_meta\.mat; expected that of Stanford Cars in --manual_dir",
        ),
        (remove("devkit/cars_train_annos.mat"), r"found no file .*cars_train_annos\.mat; expected that of Stan"),
        (
            remove("cars_test/00003.jpg"),
            r"cars_test/00003\.jpg: found no such image, but cars_test_annos_withlabels\.mat lists",
        ),
        (
            write(cars196.META, {"class_names": np.zeros((1, 195))}),
            r"cars_meta\.mat: found 195 classes; expected the 196",
        ),
        (write(cars196.META, {"classes": np.zeros(1)}), r"cars_meta\.mat: found no class_names; expected"),
        (
            write("devkit/cars_train_annos.mat", {"annotations": np.zeros((1, 5))}),
            r"cars_train_annos\.mat: found no fields; expected the fields bbox_x1, ",
        ),
        (lambda folder: (folder / cars196.META).write_bytes(b"no matlab"), r"cars_meta\.mat cannot be read \("),
        (
            lambda folder: (folder / "cars_train/00002.jpg").write_bytes(b"x"),
            r"00002\.jpg cannot be read \(.*\); expected an image; replace it",
        ),
    ],
)
def test_invalid_cars_folder_is_refused(tmp_path, broken, message, in_this_process):
    (tmp_path / "m").mkdir()
    make_cars(tmp_path / "m")
    if message.startswith("m: found no"):
        (tmp_path / "m").rename(tmp_path / "elsewhere")
    else:
        broken(tmp_path / "m")
    with pytest.raises(UserError, match=message) as error:
        cars196.prepare(tmp_path / "m", str(tmp_path / "tfds"))
    assert "\n" not in str(error.value)


def test_cars_into_an_invalid_data_dir(tmp_path, in_this_process):
    make_cars(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/cars196") as error:
        cars196.prepare(tmp_path, str(tmp_path / "file"))
    assert "\n" not in str(error.value)


def test_invalid_class_of_a_car_is_refused(tmp_path, in_this_process):
    make_cars(tmp_path, classes=(1, 197))
    with pytest.raises(UserError, match=r"cars_train_annos\.mat: found class 197 for 00002\.jpg; expected 1 to 196"):
        cars196.prepare(tmp_path, str(tmp_path / "tfds"))


def test_prepare_prints_an_error_in_one_line(tmp_path, cli):
    done = cli("prepare", "--dataset=cars196", f"--manual_dir={tmp_path}/none", f"--data_dir={tmp_path}/tfds")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and f"{tmp_path}/none: found no such folder" in lines[0]


@pytest.mark.parametrize("size", [8, 40])
def test_images_are_resized_as_by_pil(tmp_path, size):
    make_builder(tmp_path, shape=(None, None, 3))
    loaded = sources.load(source="tfds:tiny_hierarchy", data_dir=str(tmp_path), image_size=size)
    streamed = sources.load(source="tfds:tiny_hierarchy", data_dir=str(tmp_path), image_size=size, stream=True)
    assert streamed["train"].image.shape == (90, size, size, 3)
    np.testing.assert_array_equal(streamed["train"].image.read(), loaded["train"].image)
    ids, shuffled = next(streamed["train"].image.shuffled(16, seed=1, buffer_size=50))
    np.testing.assert_array_equal(shuffled, loaded["train"].image[ids])
    for split, records in loaded.items():
        _, images = in_files(tmp_path, "tiny_hierarchy", "label", split)
        expected = np.stack([pil_resized(image, size) for image in images])
        assert len({image.shape for image in images}) > 1
        # PIL rounds to whole levels after each direction.
        assert np.abs(records.image - expected).max() <= 1
        assert np.abs(records.image - expected).mean() < 0.3


def test_downsized_images_are_antialiased(cars):
    """Compares the contrast of noise with PIL's; without antialiasing it would not decrease."""
    loaded = sources.load(source="tfds:cars196", data_dir=str(cars / "tfds"), image_size=8)
    files = (cars / "manual" / "cars_train").iterdir()
    expected = np.stack([pil_resized(np.asarray(PIL.Image.open(file)), 8) for file in files])
    assert loaded["train"].image.std() == pytest.approx(expected.std(), rel=0.1)
