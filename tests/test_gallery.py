"""Galleries: built from images, searched, extended, saved, classified by, and handed to faiss and pandas."""

import json
import pathlib

import numpy as np
import pytest

import grafit_jax
from grafit_jax import gallery as gallery_lib
from grafit_jax.errors import UserError
from grafit_jax.gallery import Gallery
from grafit_jax.retrieval import rerank
from grafit_jax.retrieval.embeddings import Features
from helpers import image_files


def angles(*degrees, **columns):
    """A gallery of unit vectors in the plane, without a model."""
    radians = np.deg2rad(degrees)
    embedding = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)
    return Gallery(Features(embedding, np.array([f"g/{d}" for d in degrees]), **columns))


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Four photos of two classes in photos/, and the working directory beside it."""
    monkeypatch.chdir(tmp_path)
    image_files.write_tree(tmp_path / "photos", {"x/a": 2, "y/b": 2}, height=9, width=12)
    return tmp_path


def test_labels_ids_and_file_names_of_a_folder(digits, photos):
    features = Gallery.build(digits, "photos").features
    assert features.id.tolist() == [
        f"photos/{name}" for name in ("x/a/00.png", "x/a/01.png", "y/b/00.png", "y/b/01.png")
    ]
    assert (features.label.tolist(), features.coarse_label.tolist()) == ([*"aabb"], [*"xxyy"])
    assert features.filename.tolist() == [str(photos / name) for name in features.id]
    assert features.made_by == digits.made_by("trunk") | {"unit": True}
    # A single folder is a coarse class, as in training.
    coarse = Gallery.build(digits, "photos/x").features
    assert coarse.label is None and coarse.coarse_label.tolist() == ["a", "a"]
    assert Gallery.build(digits, "photos/x/a").features.levels == {}
    images = np.zeros((4, 8, 8), np.uint8)[..., None]
    named = Gallery.build(digits, images, labels=["p", None, float("nan"), 7]).features
    assert named.label.tolist() == ["p", "", "", "7"] and named.coarse_label is None
    assert named.id.tolist() == [*"0123"] and named.filename is None


def test_a_coarse_class_without_finer_ones_is_its_own_fine_class(digits, photos):
    rows = [("x/a/00.png", "c", "f"), ("x/a/01.png", "d", ""), ("y/b/00.png", "", "g")]
    image_files.write_csv(photos / "photos" / "list.csv", rows, header=("path", "coarse", "fine"))
    features = Gallery.build(digits, "photos/list.csv").features
    assert (features.label.tolist(), features.coarse_label.tolist()) == (["f", "d", "g"], ["c", "d", ""])


def test_the_finest_known_class_is_that_of_each_image(digits, photos):
    gallery = Gallery.build(digits, "photos/x")
    gallery.add("photos/y/b")
    assert gallery.features.finest.tolist() == ["a", "a", "", ""]
    fine = Gallery.build(digits, "photos/x")
    image_files.write_tree(photos / "more", {"g/s": 1})
    fine.add("more")
    assert (fine.features.label.tolist(), fine.features.coarse_label.tolist()) == ([*"aas"], [*"aag"])
    hits = gallery.search_ids(["photos/y/b/00.png"], 3)[0]
    assert sorted(hit.label for hit in hits) == ["", "a", "a"]
    f = Features(np.eye(3), np.arange(3), np.array(["", "s", ""]), np.array(["c", "c", "c"]),
                 further={"genus": np.array(["g", "h", ""])})  # fmt: skip
    assert f.finest.tolist() == ["g", "s", "c"]


def test_embeddings_equal_those_of_the_model_to_the_bit(digits, photos):
    np.testing.assert_array_equal(Gallery.build(digits, "photos").features.embedding, digits.embed("photos"))
    raw = Gallery.build(digits, "photos", layer="projector", normalize=False)
    np.testing.assert_array_equal(raw.features.embedding, digits.embed("photos", layer="projector", normalize=False))
    assert raw.layer == "projector"


def test_unreadable_images_are_left_out_with_a_warning_but_are_no_queries(digits, photos, capsys):
    image_files.spoil(photos / "photos/x/a/00.png")
    gallery = Gallery.build(digits, "photos")
    assert len(gallery) == 3 and "photos/x/a/00.png" not in gallery.features.id
    assert "skipped 1 of 4 images, which are unreadable, such as" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"found an unreadable image: .*00\.png .*; repair it or leave it out"):
        gallery.search("photos/x/a/00.png")


def test_hits_golden():
    gallery = angles(0, 10, 25, 90, label=np.array(list("aaba")), filename=np.array(["/w", "/x", "/y", "/z"]))
    # From 25, 10 is 15 degrees away and 0 is 25; from 0, 10 and 25. cos 15, 25, 10 = 0.9659, 0.9063, 0.9848.
    of_25, of_0 = gallery.search_ids(["g/25", "g/0"], 2)
    assert [(hit.id, round(hit.similarity, 4), hit.label, hit.filename) for hit in (*of_25, *of_0)] == [
        ("g/10", 0.9659, "a", "/x"),
        ("g/0", 0.9063, "a", "/w"),
        ("g/10", 0.9848, "a", "/x"),
        ("g/25", 0.9063, "b", "/y"),
    ]


def test_an_image_of_the_gallery_is_named_by_id_path_or_file_name(monkeypatch):
    monkeypatch.chdir("/")
    gallery = angles(0, 10, 20, filename=np.array(["/p/a.jpg", "/p/b.jpg", "/q/b.jpg"]))
    assert gallery.rows(["g/10", "/q/b.jpg", "p/b.jpg", "a.jpg"]).tolist() == [1, 2, 1, 0]
    assert gallery.rows("g/10").tolist() == [1] and gallery.search_ids([]) == []
    with pytest.raises(UserError, match=r"found 2 images called 'b\.jpg'; expected one; use an id, such as 'g/10'"):
        gallery.rows(["b.jpg"])
    with pytest.raises(
        UserError, match=r"found unknown id 'g/11' \(did you mean 'g/1.?'\?\); expected one of the gall"
    ):
        gallery.rows(["g/0", "g/11"])


def test_adding_keeps_ids_unique_and_fills_unknown_columns(digits, photos):
    gallery = Gallery.build(digits, "photos")
    for again in ("photos/x", photos / "photos" / "x"):  # the same files by other ids, too
        with pytest.raises(UserError, match=r"gallery: found image .*photos/x/a/00\.png, which it has already; exp"):
            gallery.add(again)
    assert len(gallery) == 4
    for _ in range(2):
        gallery.add(np.full((8, 8), 200, np.uint8))
    assert gallery.features.label.tolist() == [*"aabb", "", ""] and gallery.features.filename[-1] == ""
    assert gallery.features.id[-2:].tolist() == ["4", "5"] and len(gallery.features.coarse_label) == 6
    with pytest.raises(UserError, match="found no model to embed images; use"):
        angles(0, 10).add("photos")


def test_added_images_have_the_length_of_the_others(digits, photos):
    gallery = Gallery.build(digits, "photos/x", normalize=False)
    gallery.save("raw.npz")
    gallery = Gallery.load("raw.npz", digits)
    gallery.add("photos/y")
    np.testing.assert_array_equal(gallery.features.embedding[2:], digits.embed("photos/y", normalize=False))


def test_classify_is_the_weighted_vote_of_the_neighbours(digits, photos):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 1), np.uint8)
    labels = rng.permutation([*"aaabbbcccc"] * 4)
    gallery = Gallery.build(digits, images[:30], labels=labels[:30])
    z = digits.embed(images).astype(np.float64)
    similarity = z[30:] @ z[:30].T
    expected = []
    for row in similarity:
        near = np.argsort(-row)[:7]
        votes = {c: np.sum(np.exp(row[near] / 0.1) * (labels[near] == c)) for c in "abc"}
        expected.append(max(votes, key=votes.get))
    assert digits.classify(images[30:], gallery, k=7, temperature=0.1).tolist() == expected
    assert len({*expected}) > 1
    # The default is the config's k, or the whole gallery; images without a label have no vote.
    few = Gallery.build(digits, images[:3], labels=["a", "", ""])
    assert digits.classify(images[30:], few).tolist() == ["a"] * 10
    with pytest.raises(UserError, match="gallery: found no labels; expected a gallery of labelled images"):
        digits.classify(images[30:], Gallery.build(digits, images[:3]))
    with pytest.raises(UserError, match="found k = 31; expected at most 30"):
        digits.classify(images[30:], gallery, k=31)
    with pytest.raises(UserError, match="temperature: found 0; expected a number above 0"):
        digits.classify(images[30:], gallery, temperature=0)


def test_a_gallery_of_another_model_or_layer_is_refused(digits, trained_once, photos, capsys):
    earlier = grafit_jax.load(trained_once, checkpoint=14)
    gallery = Gallery.build(digits, "photos")
    gallery.save("g.npz")
    message = (
        rf"gallery: found embeddings of another model or layer than .*train_run \(model {digits.digest}, not "
        rf"{earlier.digest}; step 28, not 14\); expected the same model and --layer"
    )
    with pytest.raises(UserError, match=message):
        Gallery.load("g.npz", earlier)
    with pytest.raises(UserError, match=message):
        earlier.classify("photos", gallery)
    capsys.readouterr()
    # A gallery from elsewhere passes, with a warning.
    np.savez("other.npz", embedding=gallery.features.embedding)
    assert Gallery.load("other.npz", digits).search("photos/x/a/00.png", 1)[0][0].id == "0"
    assert "gallery: found no record of the model of these embeddings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.search("photos/x/a/00.png", 5), "found k = 5; expected at most 4, the number of gallery rows"),
        (lambda g: g.search("photos/none.png"), r"found no file 'photos/none\.png'"),
        (
            lambda g: Gallery.build(g.model, ["photos/x", "photos/x/a/00.png"]),
            r"images: found photos/x/a/00\.png twice",
        ),
        (
            lambda g: Gallery.build(g.model, "photos", labels=["a"]),
            "labels: found more images than labels, which are 1; expected one for each image",
        ),
        (
            lambda g: Gallery.build(g.model, "photos", labels=[*"abcde"]),
            "labels: found more labels than images, which are 4",
        ),
        (lambda g: Gallery.build(g.model, []), "found no image that can be read"),
        (lambda g: Gallery.load("none.parquet"), r"found no file none\.parquet"),
        (lambda g: g.save("g.txt"), r"g\.txt: found extension '\.txt'"),
    ],
)
def test_a_mistake_is_a_one_line_error(digits, photos, call, message):
    with pytest.raises(UserError, match=message):
        call(Gallery.build(digits, "photos"))


def test_faiss_finds_the_same_images(digits, photos, monkeypatch):
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(rerank, "_VALUES", 20 * 16)  # several parts
    monkeypatch.setattr(gallery_lib, "_MOST_TRAINED", 40)
    rng = np.random.default_rng(1)
    gallery = Gallery.build(digits, rng.integers(0, 256, (50, 8, 8, 1), np.uint8), normalize=False)
    queries = rng.integers(0, 256, (5, 8, 8, 1), np.uint8)
    index = gallery.to_faiss()
    assert isinstance(index, faiss.Index) and index.ntotal == 50
    similarity, near = index.search(digits.embed(queries), 3)
    for hits, ids, similarities in zip(gallery.search(queries, 3), near, similarity, strict=True):
        assert [hit.id for hit in hits] == [str(i) for i in ids]
        np.testing.assert_allclose([hit.similarity for hit in hits], similarities, atol=1e-5)
    assert gallery.to_faiss("IVF2,Flat").ntotal == 50


def test_pandas_has_a_row_per_image(digits, photos):
    pytest.importorskip("pandas")
    gallery = Gallery.build(digits, "photos")
    table = gallery.to_pandas()
    assert [*table.columns] == ["id", "label", "coarse_label", "filename", "embedding"]
    assert table[table.label == "a"].id.tolist() == ["photos/x/a/00.png", "photos/x/a/01.png"]
    np.testing.assert_array_equal(np.stack(table.embedding), gallery.features.embedding)


@pytest.mark.parametrize(("name", "call"), [("faiss", Gallery.to_faiss), ("pandas", Gallery.to_pandas)])
def test_without_a_package_the_message_says_what_to_install(monkeypatch, name, call):
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"found no {name}; use `pip install {name}"):
        call(angles(0, 10))


def test_a_gallery_file_records_its_model(digits, photos):
    Gallery.build(digits, "photos").save("g.npz")
    made_by = json.loads(str(np.load("g.npz")["made_by"]))
    assert made_by == {"model": digits.digest, "layer": "trunk", "step": 28, "path": digits.path, "unit": True}
    assert pathlib.Path(digits.path).is_absolute()
