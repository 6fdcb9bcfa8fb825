"""iNaturalist: levels from categories.json (2018), and preparation from the competition's files (2019)."""

import json

import numpy as np
import PIL.Image
import pytest

from grafit_jax.data import sources
from grafit_jax.data.datasets import inaturalist2019, taxonomy
from grafit_jax.errors import UserError
from helpers.pixels import pil_resized, random_images
from helpers.tfds_data import in_files, prepare

BIRD = ("Animalia", "Chordata", "Aves")
PLANT = ("Plantae", "Tracheophyta", "Magnoliopsida")
# Kingdom, phylum, class, order, family and genus of each species. A gannet and a mulberry share the genus name Morus.
LINES = {
    "Prunella modularis": (*BIRD, "Passeriformes", "Prunellidae", "Prunella"),
    "Morus alba": (*PLANT, "Rosales", "Moraceae", "Morus"),
    "Morus bassanus": (*BIRD, "Suliformes", "Sulidae", "Morus"),
    "Prunella collaris": (*BIRD, "Passeriformes", "Prunellidae", "Prunella"),
    "Danaus plexippus": ("Animalia", "Arthropoda", "Insecta", "Lepidoptera", "Nymphalidae", "Danaus"),
    "Sula sula": (*BIRD, "Suliformes", "Sulidae", "Sula"),
}


def categories(lines=LINES, first_id=0):
    return [
        {"id": i, "name": name, "supercategory": "any", **dict(zip(taxonomy.LEVELS[:-1], line, strict=True))}
        for i, (name, line) in enumerate(lines.items(), start=first_id)
    ]


# The taxonomy


def test_classes_of_every_level():
    found = taxonomy.classes(categories())
    assert tuple(found) == taxonomy.LEVELS
    assert {level: len(of_level.names) for level, of_level in found.items()} == {
        "kingdom": 2, "phylum": 3, "class": 3, "order": 4, "family": 4, "genus": 5, "species": 6,
    }  # fmt: skip
    assert found["kingdom"].names == ("Animalia", "Plantae") and found["kingdom"].of_fine.tolist() == [0, 1, 0, 0, 0, 0]
    # Sorted by path: Arthropoda before Chordata, Passeriformes before Suliformes.
    assert found["genus"].names == ("Danaus", "Prunella", "Morus (Sulidae)", "Sula", "Morus (Moraceae)")
    assert found["genus"].of_fine.tolist() == [1, 4, 2, 1, 0, 3] and found["genus"].of_fine.dtype == np.int32
    assert found["species"].names == tuple(LINES) and found["species"].of_fine.tolist() == [0, 1, 2, 3, 4, 5]


def test_names_are_the_shortest_unique_ones():
    lines = {
        "a": ("K", "P", "C", "O", "F", "G"),
        "b": ("K", "Q", "C", "O", "F", "G"),
        "c": ("K", "Q", "C", "", "F", "G"),
        "d": ("K", "Q", "C", "", "F", "H"),
    }
    found = taxonomy.classes(categories(lines))
    assert found["genus"].names == ("G (F, O, C, P)", "G (F, O, C, Q)", "G (F, unnamed)", "H")
    assert found["phylum"].names == ("P", "Q") and found["class"].names == ("C (P)", "C (Q)")
    assert found["order"].names == ("O (C, P)", "O (C, Q)", "unnamed")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def changed(place, **change):
    rows = categories()
    rows[place] = {key: value for key, value in (rows[place] | change).items() if value != "leave out"}
    return rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "{",
            r"categories\.json cannot be read \(Expecting .*\); expected iNaturalist's categories\.json with real",
        ),
        ({"categories": []}, "categories.json: found no list; expected"),
        ([], "categories.json: found no category; expected"),
        (["x"], "found no id in category 0; expected"),
        (
            changed(2, genus="leave out"),
            r"found no genus in category 2; expected iNaturalist's .* a list of \{id, name, kingdom, ",
        ),
        (changed(2, genus=3), "found genus = 3 in category 2; expected"),
        (changed(1, id="1"), "found id = '1' in category 1; expected"),
        (changed(3, id=2), "found the id 2 2 times; expected each once"),
        (changed(3, name="Sula sula"), "found the name Sula sula 2 times; expected each once"),
    ],
)
def test_invalid_categories_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
        taxonomy.read(write(tmp_path / "categories.json", content))
    assert "\n" not in str(error.value)


def test_numbers_of_classes_other_than_the_published_ones_give_a_warning(capsys):
    found = taxonomy.classes(categories())
    counts = {level: len(of_level.names) for level, of_level in found.items()}
    taxonomy.check_counts(found, counts, "x")
    assert capsys.readouterr().err == ""
    taxonomy.check_counts(found, counts | {"genus": 72, "kingdom": 3}, "x")
    assert capsys.readouterr().err == (
        "warning: x: found 2 classes of kingdom (published: 3), 5 classes of genus (published: 72); "
        "results are not comparable with published ones.\n"
    )


# 2018, with TFDS's own species: those of LINES, and the others in one family

OF_TFDS = {"train": [3486, 3995, 3640, 7052, 3641, 3995], "validation": [3995, 7052]}  # label + 1


@pytest.fixture(scope="module")
def inat2018(tmp_path_factory):
    """The folder of the prepared data set, and the species of TFDS."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("inat2018")
    examples = {
        split: [
            {"id": f"{split}{i}", "image": image, "label": row - 1, "supercategory": 0}
            for i, (image, row) in enumerate(zip(random_images(len(split), len(rows)), rows, strict=True))
        ]
        for split, rows in OF_TFDS.items()
    }
    prepare(folder, "i_naturalist2018", examples)
    file = tfds.core.tfds_path("image_classification/i_naturalist2018/inaturalist2018_labels.txt")
    species = file.read_text().splitlines()
    assert len(species) == 8142 and "Morus bassanus" in species
    return folder, species


def tree_of(species):
    """Returns categories with every species: as in LINES, or in one family, with the genus in its name."""
    other = (*PLANT, "Lamiales", "Lamiaceae")
    return categories({name: LINES.get(name, (*other, name.split()[0])) for name in reversed(species)}, first_id=7)


def load_2018(inat2018, **options):
    return sources.load(source="tfds:i_naturalist2018", data_dir=str(inat2018[0]), image_size=8, **options)


@pytest.mark.parametrize("level", ["", "family", "species"])
def test_2018_takes_the_levels_from_the_file(inat2018, tmp_path, capsys, level):
    folder, species = inat2018
    file = write(tmp_path / "c.json", tree_of(species))
    loaded = load_2018(inat2018, inat_categories_file=str(file), train_level=level)
    said = capsys.readouterr().err
    assert (
        "warning: tfds:i_naturalist2018: found 2 classes of kingdom (published: 6), " in said
        and "of species" not in said
    )
    line = {row["name"]: row for row in tree_of(species)}
    for split, of_tfds in (("train", "train"), ("test", "validation")):
        records = loaded[split]
        label, images = in_files(folder, "i_naturalist2018", "label", of_tfds)
        assert tuple(records.levels) == taxonomy.LEVELS and records.train_level == (level or "genus")
        np.testing.assert_array_equal(records.label, label)
        assert records.label_names == tuple(species) and sorted(label + 1) == sorted(OF_TFDS[of_tfds])
        for name, of_level in records.levels.items():
            got = [of_level.names[y].split(" (")[0] for y in of_level.label]
            assert got == [line[species[y]]["name" if name == "species" else name] for y in label]
        assert np.abs(records.image - np.stack([pil_resized(image, 8) for image in images])).max() <= 1
    # A bird and a plant whose genera share a name are in two classes.
    train = loaded["train"]
    genus = {train.label_names[y]: g for y, g in zip(train.label, train.levels["genus"].label, strict=True)}
    names = train.levels["genus"].names
    assert names[genus["Prunella modularis"]] == names[genus["Prunella collaris"]] == "Prunella (Prunellidae)"
    assert names[genus["Prunella vulgaris"]] == "Prunella (Lamiaceae)" and names[genus["Morus bassanus"]] == "Morus"


def test_2018_finds_the_file_in_the_folder_of_the_data_set(inat2018):
    folder, species = inat2018
    beside = write(folder / "i_naturalist2018" / "categories.json", tree_of(species))
    try:
        loaded = load_2018(inat2018, train_level="class")
        assert loaded["train"].train_names[loaded["train"].train_label[0]] == "Aves"
    finally:
        beside.unlink()


@pytest.mark.parametrize("options", [{}, {"train_level": "genus"}, {"train_level": "species", "coarse_classes": (0,)}])
def test_2018_refuses_a_missing_file(inat2018, options):
    with pytest.raises(
        UserError,
        match=r"tfds:i_naturalist2018: found no .*i_naturalist2018/categories\.json; expected the categories\.json "
        r"that defines the levels above species; put it there, set data\.inat_categories_file to it, or use "
        r"data\.train_level=species",
    ) as error:
        load_2018(inat2018, **options)
    assert "\n" not in str(error.value)


def test_2018_with_the_species_only(inat2018, capsys):
    records = load_2018(inat2018, train_level="species")["train"]
    assert tuple(records.levels) == ("species",) and tuple(records.labels) == ("",)
    assert "; species is the only level, and there are no metrics of the others." in capsys.readouterr().err


def test_2018_refuses_a_file_that_lacks_a_species(inat2018, tmp_path):
    file = write(tmp_path / "c.json", [row for row in tree_of(inat2018[1]) if row["name"] != "Morus bassanus"])
    with pytest.raises(
        UserError, match=r"c\.json: found no category for 1 of the 8142 species of .*, such as Morus bassanus; expected"
    ):
        load_2018(inat2018, inat_categories_file=str(file))
    with pytest.raises(
        UserError, match=r"tfds:i_nat.*: found .* 'genera'; expected kingdom or phylum or .* or species"
    ):
        load_2018(inat2018, inat_categories_file=str(write(file, tree_of(inat2018[1]))), train_level="genera")
    with pytest.raises(UserError, match=r"found no .*none\.json"):
        load_2018(inat2018, inat_categories_file=str(tmp_path / "none.json"), train_level="species")


def test_a_categories_file_is_refused_for_other_sources(tmp_path):
    with pytest.raises(
        UserError, match=r"data\.inat_categories_file = 'c\.json' with digits; expected it only with prepared TFDS"
    ):
        sources.load(source="digits", inat_categories_file="c.json")


# 2019

IMAGES_2019 = {"train": [3, 0, 5, 4, 1, 2, 0], "validation": [2, 5]}  # categories


def make_2019(folder):
    """Writes a folder in the competition's layout, with image ids and annotations in another order than the images."""
    write(folder / "categories.json", [row | {"id": row["id"] + 100} for row in reversed(categories())])
    for split, of_image in IMAGES_2019.items():
        images, annotations = [], []
        for i, (image, category) in enumerate(zip(random_images(len(split), len(of_image)), of_image, strict=True)):
            file = folder / "train_val2019" / "Life" / str(category) / f"{split}{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(image).save(file)
            images.append({"id": 500 - i + len(split), "file_name": str(file.relative_to(folder)), "width": 1})
            annotations.insert(0, {"id": i, "image_id": images[-1]["id"], "category_id": category + 100})
        obfuscated = [{"id": 100 + i, "name": str(i), "supercategory": "Life"} for i in range(6)]
        content = {"images": images, "annotations": annotations, "categories": obfuscated, "info": {}}
        write(folder / inaturalist2019.FILES[split], content)
    return folder


@pytest.fixture(scope="module")
def inat2019(tmp_path_factory, cli):
    folder = tmp_path_factory.mktemp("inat2019")
    make_2019(folder / "manual")
    done = cli("prepare", "--dataset=inaturalist2019", f"--manual_dir={folder}/manual", f"--data_dir={folder}/tfds")
    assert done.returncode == 0, done.stderr[-2000:]
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    again = f"; remove {folder}/tfds/inaturalist2019/1.0.0 to prepare it again."
    assert warnings == [
        "warning: inaturalist2019: found 2 classes of kingdom (published: 3), 3 classes of phylum (published: 4), 3 "
        "classes of class (published: 9), 4 classes of order (published: 34), 4 classes of family (published: 57), 5 "
        "classes of genus (published: 72), 6 classes of species (published: 1010); results are not comparable with published ones.",  # noqa: E501
        f"warning: inaturalist2019, split train: found 7 images; expected 265240{again}",
        f"warning: inaturalist2019, split validation: found 2 images; expected 3003{again}",
    ]
    return folder


def load_2019(inat2019, **options):
    return sources.load(source="tfds:inaturalist2019", data_dir=str(inat2019 / "tfds"), **options)


@pytest.mark.parametrize("stream", [False, True])
def test_2019_prepared_from_a_folder(inat2019, stream):
    loaded = load_2019(inat2019, image_size=24, train_level="family", stream=stream)
    for split, of_tfds in (("train", "train"), ("test", "validation")):
        records = loaded[split]
        images = records.image.read() if stream and split == "train" else records.image
        assert tuple(records.levels) == taxonomy.LEVELS and records.label_names == tuple(LINES)
        assert sorted(records.label) == sorted(IMAGES_2019[of_tfds]) and images.shape == (len(records), 24, 24, 3)
        for i, name in enumerate(taxonomy.LEVELS[:-1]):
            of_level = records.levels[name]
            got = [of_level.names[y].split(" (")[0] for y in of_level.label]
            assert got == [LINES[records.label_names[y]][i] for y in records.label]
        assert records.train_names == ("Nymphalidae", "Prunellidae", "Sulidae", "Moraceae")
        # Every image of the folder is present with its label. JPEG decoders differ by a few levels.
        for file in (inat2019 / "manual" / "train_val2019").rglob(f"{of_tfds}*.jpg"):
            distance = np.abs(images - pil_resized(np.asarray(PIL.Image.open(file)), 24)).mean(axis=(1, 2, 3))
            assert distance.min() < 3 < 10 < np.sort(distance)[1]
            assert records.label[distance.argmin()] == int(file.parent.name)


def test_2019_trains_on_genus_by_default(inat2019):
    loaded = load_2019(inat2019, image_size=8, coarse_classes=(2,))
    assert loaded["train"].train_level == sources.usual_level("tfds:inaturalist2019", ()) == "genus"
    assert loaded["train"].train_names == ("Morus (Sulidae)",)
    assert loaded["train"].label_names == ("Morus bassanus",) and [len(r) for r in loaded.values()] == [1, 1]


def test_2019_not_prepared(tmp_path):
    with pytest.raises(UserError) as error:
        sources.load(source="tfds:inaturalist2019", data_dir=str(tmp_path), image_size=8)
    how = f"`python experiments/prepare.py --dataset=inaturalist2019 --manual_dir=DIR --data_dir={tmp_path}`"
    assert str(error.value).startswith(
        f"tfds:inaturalist2019: found no prepared data set in {tmp_path}; run {how}, or set"
    )


def edit(name, change):
    """Returns a function that changes an annotations file."""

    def broken(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        write(folder / name, content)

    return broken


def remove(name):
    return lambda folder: (folder / name).rename(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (remove("."), r"m: found no such folder; expected train_val2019, train2019\.json, val2019\.json, categories"),
        (remove("train_val2019"), r"train_val2019: found no such folder; expected train_val2019, "),
        (remove("categories.json"), r"found no file .*m/categories\.json; expected iNaturalist's categories\.json"),
        (remove("val2019.json"), r"found no file .*val2019\.json; expected that of iNat"),
        (remove("train_val2019/Life/4/train3.jpg"), r"train3\.jpg: found no such image, but train2019\.json lists it"),
        (lambda f: (f / "train_val2019/Life/4/train3.jpg").write_bytes(b"x"), r"train3\.jpg cannot be read \(can"),
        (lambda f: (f / "train2019.json").write_text("["), r"train2019\.json cannot be read \(Expecting value: "),
        (edit("val2019.json", lambda c: c.pop("annotations")), r"val2019\.json cannot be read \(KeyError: 'anno"),
        (edit("val2019.json", lambda c: c.update(images=[3])), r"val2019\.json cannot be read \(TypeError: "),
        (
            edit("val2019.json", lambda c: c["annotations"].pop()),
            r"val2019\.json: found no annotation for .*/validation0",
        ),
        (
            edit("train2019.json", lambda c: c["annotations"][0].update(category_id=99)),
            r"train2019\.json: found category 99 for .*/train6\.jpg; expected one in categories\.json; use the",
        ),
    ],
)  # fmt: skip
def test_2019_refuses_an_invalid_folder(tmp_path, broken, message):
    make_2019(tmp_path / "m")
    broken(tmp_path / "m")
    with pytest.raises(UserError, match=message) as error:
        inaturalist2019.prepare(tmp_path / "m", str(tmp_path / "tfds"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "tfds" / "inaturalist2019").exists()
