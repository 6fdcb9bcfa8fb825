"""The catalog: hierarchies, and small data sets with TFDS's own features loaded by `sources.load`."""

import pathlib

import numpy as np
import pytest

from grafit_jax.data import sources
from grafit_jax.data.datasets import catalog
from grafit_jax.data.readers import tfds
from grafit_jax.errors import UserError
from helpers.pixels import pil_resized, random_images
from helpers.tfds_data import in_files, make_builder, prepare

# Hierarchies


@pytest.mark.parametrize(
    ("name", "images_of_class"),
    [
        ("imagenet32", [61, 123, 59, 95, 60, 130, 70, 53, 105, 71, 93, 80]),
        ("cars196", [18, 50, 36, 30, 29, 14, 6, 13]),
    ],
)
def test_every_fine_class_has_one_coarse_class(name, images_of_class):
    table = catalog.load_hierarchy(name)
    assert np.bincount(table.coarse_of_fine).tolist() == images_of_class
    assert len(set(table.label_names)) == len(table.label_names) == sum(images_of_class)
    assert table.coarse_names == tuple(map(str, range(len(images_of_class))))


def test_label_names_are_those_of_tfds():
    import tensorflow_datasets as tfds
    from tensorflow_datasets.image_classification.cars196 import _NAMES

    labels = pathlib.Path(tfds.core.tfds_path("image_classification/imagenet_resized_labels.txt"))
    names = catalog.load_hierarchy("imagenet32").label_names
    assert list(names) == labels.read_text().split()
    # imagenet_resized has the classes of imagenet2012 in another order.
    imagenet = pathlib.Path(tfds.core.tfds_path("datasets/imagenet2012/labels.txt")).read_text().split()
    assert list(names) != imagenet == sorted(names)
    assert list(catalog.load_hierarchy("imagenet127").label_names) == imagenet
    assert list(catalog.load_hierarchy("cars196").label_names) == _NAMES


def test_imagenet32_groups_similar_classes():
    table = catalog.load_hierarchy("imagenet32")
    group = dict(zip(table.label_names, table.coarse_of_fine.tolist(), strict=True))
    dogs = ["n02085620", "n02088364", "n02099601", "n02106662", "n02113799"]  # Chihuahua, beagle, retriever, shepherd
    birds = ["n01514859", "n01530575", "n02007558", "n02056570"]  # hen, brambling, flamingo, king penguin
    fish = ["n01440764", "n01443537", "n01484850"]  # tench, goldfish, white shark
    insects = ["n02165456", "n02206856", "n02279972"]  # ladybug, bee, monarch
    wild = ["n02114367", "n02119789", "n02129165", "n02129604"]  # timber wolf, kit fox, lion, tiger
    groups = [{group[wnid] for wnid in wnids} for wnids in (dogs, birds, fish, insects, wild)]
    assert [len(g) for g in groups] == [1] * 5
    assert len(set.union(*groups)) == 5
    assert group["n02123045"] == group["n02123394"] == group["n02085620"]  # house cats (tabby, Persian) and dogs


def test_imagenet127_has_the_classes_of_the_paper():
    table = catalog.load_hierarchy("imagenet127")
    assert len(table.coarse_names) == len(set(table.coarse_names)) == 127
    images = np.bincount(table.coarse_of_fine, minlength=127)
    assert images.sum() == 1000 and images.min() == 1 and images.max() == 218 and np.sum(images == 1) == 65
    name = {w: table.coarse_names[c] for w, c in zip(table.label_names, table.coarse_of_fine, strict=True)}
    assert table.coarse_names[images.argmax()] == name["n02085620"] == name["n02123045"] == "mammal"  # Chihuahua, tabby
    assert (
        name["n01530575"] == name["n02056570"] == "bird" and name["n01755581"] == "snake"
    )  # brambling, penguin; rattler
    assert name["n01484850"] == "shark" and name["n01440764"] == name["n01443537"] != "shark"  # tench, goldfish
    assert name["n07753592"] == "fruit" and name["n02930766"] == name["n03100240"]  # banana; cab, convertible


def test_coarse_classes_of_cars_are_body_types():
    table = catalog.load_hierarchy("cars196")
    body = dict(zip(table.label_names, table.coarse_of_fine.tolist(), strict=True))
    assert body["AM General Hummer SUV 2000"] == body["Jeep Wrangler SUV 2012"] == body["BMW X5 SUV 2007"]
    # The pickups.
    assert body["HUMMER H3T Crew Cab 2010"] == body["Ford F-150 Regular Cab 2012"] != body["BMW X5 SUV 2007"]
    assert body.pop("Rolls-Royce Phantom Drophead Coupe Convertible 2012") == body["BMW Z4 Convertible 2012"]
    for word in ("SUV", "Sedan", "Convertible", "Coupe", "Hatchback", "Minivan", "Cab"):
        assert len({coarse for name, coarse in body.items() if word in name.split()}) == 1, word


# imagenet_resized

IMAGENET_LABELS = {"train": [0, 1, 2, 999, 500, 1, 2, 0], "validation": [999, 0, 3]}


@pytest.fixture(scope="module")
def imagenet32(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    examples = {
        split: [{"image": image, "label": y} for image, y in zip(random_images(7, len(ys), (32, 32)), ys, strict=True)]
        for split, ys in IMAGENET_LABELS.items()
    }
    prepare(folder, "imagenet_resized", examples, config="32x32", shards=2)
    return folder


def test_imagenet32(imagenet32):
    loaded = sources.load(source="tfds:imagenet_resized/32x32", data_dir=str(imagenet32))
    table = catalog.load_hierarchy("imagenet32")
    for split, of_tfds in (("train", "train"), ("test", "validation")):
        label, images = in_files(imagenet32, "imagenet_resized", "label", of_tfds)
        records = loaded[split]
        np.testing.assert_array_equal(records.label, label)
        assert sorted(label) == sorted(IMAGENET_LABELS[of_tfds])
        np.testing.assert_array_equal(records.image, np.stack(images))
        np.testing.assert_array_equal(records.train_label, table.coarse_of_fine[label])
        assert records.label_names[0] == "n02119789" and records.train_names == tuple(map(str, range(12)))
    same = sources.load(source="tfds:imagenet_resized/32x32", data_dir=str(imagenet32), image_size=32)
    np.testing.assert_array_equal(same["train"].image, loaded["train"].image)


@pytest.mark.parametrize("size", [0, 16])
def test_imagenet32_of_a_coarse_class_streams(imagenet32, size):
    options = {"source": "tfds:imagenet_resized/32x32", "data_dir": str(imagenet32), "coarse_classes": (3,)}
    options["image_size"] = size
    # n02119789, label 0, is the only class of group 3 in both splits.
    fox = catalog.load_hierarchy("imagenet32").coarse_of_fine[[0, 1, 2, 3, 500, 999]] == 3
    assert fox.tolist() == [True, False, False, False, False, False]
    streamed = sources.load(**options, stream=True)
    assert [len(r) for r in streamed.values()] == [2, 1]
    np.testing.assert_array_equal(streamed["train"].image.read(), sources.load(**options)["train"].image)


def test_label_names_other_than_those_of_tfds_are_refused():
    table = catalog.load_hierarchy("cars196")
    names = [*table.label_names[1:], table.label_names[0]]
    with pytest.raises(UserError, match=r"tfds:x: found 196 classes \(the first difference is Acura RL Sedan 2012\)"):
        table.check(names, "tfds:x")
    with pytest.raises(UserError, match=r"tfds:x: found 2 classes .*; expected TFDS's own 196"):
        table.check(table.label_names[:2], "tfds:x")


def test_withheld_fine_labels_are_refused_if_they_define_the_coarse_ones(tmp_path):
    examples = {
        split: [{"image": image, "label": y} for image, y in zip(random_images(7, 2, (32, 32)), (3, -1), strict=True)]
        for split in ("train", "validation")
    }
    prepare(tmp_path, "imagenet_resized", examples, config="32x32")
    with pytest.raises(UserError, match=r"tfds:imagenet_resized/32x32: found images without a fine label \(-1\)"):
        sources.load(source="tfds:imagenet_resized/32x32", data_dir=str(tmp_path))


def test_fingerprint_of_streamed_images_depends_on_their_size(imagenet32):
    options = {"source": "tfds:imagenet_resized/32x32", "data_dir": str(imagenet32), "stream": True}
    prints = [sources.load(**options, image_size=size)["train"].fingerprint() for size in (0, 16, 8, 16)]
    assert len(set(prints)) == 3 and prints[1] == prints[3]
    images = sources.load(**options, image_size=16)["train"].image
    # Images resized to another size have another identity, even if the shape is the same.
    images.shape = (8, 8, 8, 3)
    assert images.identity() != sources.load(**options, image_size=8)["train"].image.identity()


# stanford_online_products

# Images of each product (class_id), in TFDS's two splits.
PRODUCTS = {"train": {5: 12, 6: 7, 7: 8, 8: 2, 9: 11}, "test": {20: 12, 21: 8, 22: 13, 23: 7, 24: 10}}


SUPER = {4: "fan", 5: "kettle", 6: "lamp"}  # of TFDS's twelve


def super_class(product):
    return product % 3 + 4


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sop")
    rng = np.random.default_rng(0)
    examples = {}
    for split, numbers in PRODUCTS.items():
        labels = rng.permutation(np.repeat(list(numbers), list(numbers.values())))
        images = random_images(len(split), len(labels))
        examples[split] = [
            {"image": image, "class_id": y, "super_class_id": super_class(y), "super_class_id/num": super_class(y)}
            for image, y in zip(images, labels.tolist(), strict=True)
        ]
    prepare(folder, "stanford_online_products", examples, shards=3)
    return folder


def load_products(products, variant, **options):
    return sources.load(
        source="tfds:stanford_online_products", data_dir=str(products), image_size=8, variant=variant, **options
    )


def check_products(products, records, expected):
    """Compares records with the expected (product, image) pairs, in their order."""
    assert [records.label_names[y] for y in records.label] == [str(product) for product, _ in expected]
    assert [records.train_names[y] for y in records.train_label] == [SUPER[super_class(p)] for p, _ in expected]
    resized = np.stack([pil_resized(image, 8) for _, image in expected])
    image = records.image.read() if isinstance(records.image, tfds.StreamedImages) else records.image
    assert np.abs(image - resized).max() <= 1


def pairs(products, split):
    return list(zip(*in_files(products, "stanford_online_products", "class_id", split), strict=True))


@pytest.mark.parametrize("stream", [False, True])
def test_products_without_a_variant(products, stream):
    loaded = load_products(products, "", stream=stream)
    for split, records in loaded.items():
        check_products(products, records, pairs(products, split))
        assert len(records.label_names) == 22634


@pytest.mark.parametrize("stream", [False, True])
def test_products_split1(products, stream):
    loaded = load_products(products, "split1", stream=stream)
    for split, kept in (("train", (5, 7, 9)), ("test", (20, 21, 24))):  # 12, 8, 11 and 12, 8, 10 images
        check_products(products, loaded[split], [pair for pair in pairs(products, split) if pair[0] in kept])
        assert loaded[split].label_names == ("5", "7", "9", "20", "21", "24")


@pytest.mark.parametrize("stream", [False, True])
def test_products_split2(products, stream):
    loaded = load_products(products, "split2", stream=stream)
    expected, seen = {"train": [], "test": []}, {5: 0, 20: 0}  # products with 12 images, one per TFDS split
    for product, image in pairs(products, "train") + pairs(products, "test"):
        if product in seen:
            expected["train" if seen[product] < 10 else "test"].append((product, image))
            seen[product] += 1
    for split, records in loaded.items():
        assert np.bincount(records.label).tolist() == ([10, 10] if split == "train" else [2, 2])
        check_products(products, records, expected[split])
        assert records.label_names == ("5", "20")
    if stream:
        images = loaded["train"].image
        for shard in ((0, 1), (1, 2)):
            for ids, batch in images.shuffled(3, seed=0, buffer_size=9, shard=shard):
                np.testing.assert_array_equal(batch, images.read()[ids])


def test_split2_trains_on_the_first_ten_images_of_each_product():
    label = np.random.default_rng(0).permutation(np.repeat(np.arange(300), 12))
    rows = catalog.find("stanford_online_products").variants["split2"].choose(label[:1000], label[1000:])
    seen, expected = np.zeros(300, int), {"train": [], "test": []}
    for row, product in enumerate(label):
        expected["train" if seen[product] < 10 else "test"].append(row)
        seen[product] += 1
    assert {split: r.tolist() for split, r in rows.items()} == expected


def test_products_of_a_coarse_class_of_a_variant(products):
    loaded = load_products(products, "split1", coarse_classes=(2,))  # of fan, kettle and lamp, the classes with images
    assert loaded["train"].train_names == (SUPER[super_class(5)],)
    assert loaded["train"].label_names == loaded["test"].label_names == ("5", "20")
    assert {split: len(r) for split, r in loaded.items()} == {"train": 12, "test": 12}


@pytest.mark.parametrize(("variant", "numbers"), [("split1", (25368, 25278)), ("split2", (14980, 2996))])
def test_numbers_other_than_the_published_ones_give_a_warning(products, capsys, variant, numbers):
    load_products(products, variant)
    where = f"tfds:stanford_online_products, variant {variant}"
    found = {"split1": (31, 30), "split2": (20, 4)}[variant]
    assert [line for line in capsys.readouterr().err.splitlines() if where in line] == [
        f"warning: {where}: found {found[0]} training and {found[1]} test images; expected {numbers[0]} and "
        f"{numbers[1]}; results are not comparable with published ones."
    ]
    published = catalog.Variant(lambda *_: {"train": np.zeros(3), "test": np.zeros(2)}, {"train": 3, "test": 2})
    published.rows([], "here")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"variant": "split3"},
            r"tfds:stanford_online_products: found data\.variant = 'split3'; expected split1, ",
        ),
        (
            {"source": "tfds:cifar100", "variant": "split1"},
            r"tfds:cifar100: found .* 'split1'; expected no variant, since",
        ),
        (
            {"source": "digits", "variant": "split1"},
            r"found data\.variant = 'split1' with digits; expected it only with prepared TFDS",
        ),
        (
            {"source": "digits", "image_size": 9},
            r"found data\.image_size = 9 with digits; expected it only with prepared",
        ),
        ({"image_size": -1}, r"found data\.image_size = -1; expected the side in pixels, or 0"),
    ],
)
def test_unsupported_options_are_refused(products, options, message):
    with pytest.raises(UserError, match=message) as error:
        sources.load(**({"source": "tfds:stanford_online_products", "data_dir": str(products)} | options))
    assert "\n" not in str(error.value)


def test_data_set_without_coarse_labels_outside_the_catalog(tmp_path):
    make_builder(tmp_path, coarse=False)
    with pytest.raises(UserError, match=r"or one of imagenet_resized, imagenet2012, cars196, .*, food101; use another"):
        sources.load(source="tfds:tiny_hierarchy", data_dir=str(tmp_path))
