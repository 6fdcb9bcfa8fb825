"""Nearest images of queries given by gallery ids or image files."""

import json

import numpy as np
import PIL.Image
import pytest

from grafit_jax import experiment, model, restore
from grafit_jax.commands import search
from grafit_jax.errors import UserError
from grafit_jax.report import pictures
from grafit_jax.retrieval import embeddings
from grafit_jax.retrieval.embeddings import Features
from helpers import image_files
from helpers.runs import small_config


def angles(*degrees, **columns):
    radians = np.deg2rad(degrees)
    embedding = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)
    return Features(embedding, np.array([f"g/{d}" for d in degrees]), **columns)


def test_table_golden():
    gallery = angles(0, 10, 25, 90, label=np.array(list("aaba")), filename=np.array(["w", "x", "y", "z"]))
    rows = search.rows_of(gallery, ["g/25", "g/0"])
    similarity, index = search.nearest(gallery, 2, rows=rows)
    # From 25, 10 is 15 degrees away and 0 is 25; from 0, 10 and 25. cos 15, 25, 10 = 0.9659, 0.9063, 0.9848.
    assert search.table(["g/25", "g/0"], gallery, similarity, index).splitlines() == [
        "query  rank  id    similarity  label  filename",
        "g/25   1     g/10  0.9659      a      x",
        "g/25   2     g/0   0.9063      a      w",
        "g/0    1     g/10  0.9848      a      x",
        "g/0    2     g/25  0.9063      b      y",
    ]


def test_an_unknown_id_is_named_with_a_suggestion():
    with pytest.raises(
        UserError, match=r"unknown id 'g/11' \(did you mean 'g/1.?'\?\); expected one of the gallery, 'g/0' to 'g/90'"
    ):
        search.rows_of(angles(0, 10, 90), ["g/0", "g/11"])


def test_frames_follow_the_known_labels():
    fine, coarse = np.array([0, 0, 1, 2]), np.array([0, 0, 0, 1])
    assert [pictures.relation(fine, coarse, 0, i) for i in (1, 2, 3)] == ["fine", "coarse", "neither"]
    assert [pictures.relation(None, coarse, 0, i) for i in (1, 2, 3)] == ["coarse", "coarse", "neither"]
    assert pictures.relation(None, None, 0, 1) == "unknown"


@pytest.mark.parametrize("k", [1, 3, 6, 10])
def test_the_legend_of_a_picture_is_not_cut_off(tmp_path, k):
    near = [(np.zeros((4, 4, 3), np.uint8), "query"), *[(np.zeros((4, 4, 3), np.uint8), "fine")] * k]
    pictures.contact_sheet(tmp_path / "near.png", {"gallery": [near]})
    dark = np.asarray(PIL.Image.open(tmp_path / "near.png").convert("L")) < 200
    assert dark.any() and not dark[:, [0, -1]].any() and not dark[[0, -1]].any()


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("RGB", 1), ("RGBA", 3), ("P", 1), ("CMYK", 3), ("1", 3)])
def test_images_of_every_mode_are_loaded(tmp_path, mode, channels):
    path = tmp_path / ("i.tif" if mode == "CMYK" else "i.png")
    PIL.Image.new("RGB", (7, 5), (255, 255, 255)).convert(mode).save(path)
    image = search.read_image(path, channels)
    assert image.shape == (5, 7, channels) and image.dtype == np.uint8 and image.min() > 250


def test_unreadable_images_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read an image: .*none\.png \(.*No such file"):
        search.read_image(tmp_path / "none.png", 3)
    whole = tmp_path / "i.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:200])
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.png", "text.png"):
        with pytest.raises(
            UserError, match=rf"cannot read an image: .*{name} \(.*\); expected an image file, such as PNG or JPEG"
        ):
            search.read_image(tmp_path / name, 3)


def test_a_layer_that_the_method_lacks_is_an_error():
    run_ = experiment.load(small_config("baseline", **{"model.sync_batch_norm": False}))
    for call in (
        lambda: model.embed(run_, None, "test", "projector"),
        lambda: search.embed_images(run_, None, [], "projector"),
    ):
        with pytest.raises(UserError, match="found projector, which method baseline does not have; use --layer=trunk"):
            call()


def test_a_query_file_is_preprocessed_like_the_gallery(tmp_path):
    # The image is resized, and the evaluation size differs from the training size.
    written = image_files.write_tree(tmp_path, image_files.TREE, height=21, width=30)
    config = small_config(
        "baseline",
        **{"data.source": f"folder:{tmp_path}", "data.image_size": 11, "eval.size": 12, "train.batch_size": 8},
        **{"views.mean": (0.5,) * 3, "views.std": (0.3,) * 3, "eval.recall_at": (1,), "eval.layers": ("trunk",)},
    )
    run_ = experiment.load(config)
    state = restore.initial_state(run_)
    gallery = model.embed(run_, state, "test", "trunk")
    assert gallery.filename[4] in written
    query = search.read_query(run_, gallery.filename[4])
    got = search.embed_images(run_, state, [query], "trunk")
    np.testing.assert_allclose(got[0], gallery.embedding[4], atol=1e-5)


def test_a_file_of_a_test_image_finds_that_image(trained_once, tmp_path):
    # The same pixels through the same network have similarity 1.
    run_, state = restore.newest(trained_once)
    gallery = model.embed(run_, state, "test", "trunk")
    images = run_.records["test"].image
    for row in (0, 500):
        PIL.Image.fromarray(images[row, ..., 0]).save(tmp_path / f"{row}.png")
    read = [search.read_image(tmp_path / f"{row}.png", 1) for row in (0, 500)]
    similarity, index = search.nearest(gallery, 1, embeddings=search.embed_images(run_, state, read, "trunk"))
    np.testing.assert_array_equal(index[:, 0], [0, 500])
    np.testing.assert_allclose(similarity, 1, atol=1e-5)
    assert gallery.id[500] == "test/500" and set(gallery.coarse_label) == {"closed loop", "no loop"}
    np.testing.assert_array_equal(gallery.label.astype(int), run_.records["test"].label)


def test_command_lines_from_workdir_to_picture(trained_once, tmp_path, cli):
    done = cli("embed", f"--workdir={trained_once}", f"--out={tmp_path}/test.npz")
    assert done.returncode == 0, done.stderr[-2000:]
    assert embeddings.load(tmp_path / "test.npz").embedding.shape == (898, 64)

    done = cli("evaluate", f"--features={tmp_path}/test.npz", "--k=1,5", f"--out={tmp_path}/metrics.json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == (tmp_path / "metrics.json").read_text()
    got, trained = json.loads(done.stdout), json.loads((trained_once / "metrics.json").read_text())
    for name in ("recall@1", "recall@5", "coarse/recall@1"):
        assert got[name] == trained[name]
    assert got["map"] == pytest.approx(trained["map"], abs=1e-5)

    done = cli("search", f"--workdir={trained_once}", "--ids=test/3", "--k=4", f"--out={tmp_path}/near.png")
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 1 + 4 + 1
    assert PIL.Image.open(tmp_path / "near.png").width > 300

    found = done.stdout.splitlines()[1:5]
    done = cli("search", f"--gallery={tmp_path}/test.npz", "--ids=test/3", "--k=4")
    assert done.returncode == 0 and [line.split()[2] for line in done.stdout.splitlines()[1:]] == [
        line.split()[2] for line in found
    ]

    # A gallery of another layer may have the same dimensions, but its embeddings are not comparable.
    PIL.Image.new("L", (8, 8), 99).save(tmp_path / "query.png")
    query = f"--workdir={trained_once}", f"--query={tmp_path}/query.png", f"--gallery={tmp_path}/test.npz"
    assert cli("search", *query).returncode == 0
    done = cli("search", *query, "--layer=projector")
    assert done.returncode == 2 and "test.npz: found embeddings of another model or layer than" in done.stderr
    assert "layer 'trunk', not 'projector'); expected the same network and --layer" in done.stderr

    done = cli("evaluate", f"--workdir={trained_once}", "--k=1,50")
    assert done.returncode == 2 and "found --k with --workdir" in done.stderr
    for arguments, message in (
        (
            [f"--gallery={tmp_path}/test.npz", "--ids=test/3", "--out=x.png"],
            "found no file names to draw; remove --out",
        ),
        ([f"--workdir={trained_once}"], "found both or neither of --query=IMAGE and --ids=ID,ID; expected one."),
        (
            ["--ids=test/3", "--out=x.doc", f"--workdir={trained_once}"],
            "expected a file that ends in .png, .jpg, .pdf or .svg.",
        ),
        (
            ["--ids=test/3"],
            "found no --workdir; expected --workdir=DIR, which embeds --query; or --gallery=FILE and --ids=ID,ID.",
        ),
    ):
        done = cli("search", *arguments)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
