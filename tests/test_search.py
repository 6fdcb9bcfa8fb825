"""Nearest images of queries given by gallery ids or image files."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest

import grafit_jax
from grafit_jax.data.readers import decode
from grafit_jax.errors import UserError
from grafit_jax.gallery import Gallery
from grafit_jax.report import hits, pictures
from grafit_jax.retrieval import embeddings
from grafit_jax.retrieval.embeddings import Features
from grafit_jax.views import crops
from helpers import image_files


def test_table_golden():
    columns = {"label": np.array(list("aaba")), "filename": np.array(["w", "x", "y", "z"])}
    radians = np.deg2rad([0, 10, 25, 90])
    embedding = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)
    gallery = Gallery(Features(embedding, np.array(["g/0", "g/10", "g/25", "g/90"]), **columns))
    # From 25, 10 is 15 degrees away and 0 is 25; from 0, 10 and 25. cos 15, 25, 10 = 0.9659, 0.9063, 0.9848.
    assert hits.table(["g/25", "g/0"], gallery.search_ids(["g/25", "g/0"], 2), gallery).splitlines() == [
        "query  rank  id    similarity  label  filename",
        "g/25   1     g/10  0.9659      a      x",
        "g/25   2     g/0   0.9063      a      w",
        "g/0    1     g/10  0.9848      a      x",
        "g/0    2     g/25  0.9063      b      y",
    ]


def test_frames_follow_the_known_labels():
    partly, coarsely = np.array(["", "", "a", "a"]), np.array(["x", "y", "x", ""])
    assert [pictures.relation(partly, coarsely, 0, i) for i in (1, 2, 3)] == ["neither", "coarse", "unknown"]
    assert pictures.relation(partly, coarsely, 2, 3) == "fine"
    fine, coarse = np.array([0, 0, 1, 2]), np.array([0, 0, 0, 1])
    assert [pictures.relation(fine, coarse, 0, i) for i in (1, 2, 3)] == ["fine", "coarse", "neither"]
    assert [pictures.relation(None, coarse, 0, i) for i in (1, 2, 3)] == ["coarse", "coarse", "neither"]
    assert pictures.relation(None, None, 0, 1) == "unknown"


@pytest.mark.parametrize("captions", [False, True])
@pytest.mark.parametrize("k", [1, 3, 6, 10])
def test_the_legend_of_a_picture_is_not_cut_off(tmp_path, k, captions):
    near = [(np.zeros((4, 4, 3), np.uint8), "query"), *[(np.zeros((4, 4, 3), np.uint8), "fine")] * k]
    pictures.contact_sheet(tmp_path / "near.png", {"gallery": [near]}, captions=captions)
    dark = np.asarray(PIL.Image.open(tmp_path / "near.png").convert("L")) < 200
    assert dark.any() and not dark[:, [0, -1]].any() and not dark[[0, -1]].any()


def test_a_table_leaves_out_file_names_that_repeat_the_ids():
    ids = np.array(["p/a.jpg", "p/b.jpg"])
    gallery = Gallery(Features(np.eye(2, dtype=np.float32) + 1, ids, filename=np.array(["/x/p/a.jpg", "/x/p/b.jpg"])))
    lines = hits.table(["p/a.jpg"], gallery.search_ids(["p/a.jpg"], 1), gallery).splitlines()
    assert lines == ["query    rank  id       similarity", "p/a.jpg  1     p/b.jpg  0.8000"]


def test_a_picture_has_captions_with_labels_and_similarities(tmp_path, monkeypatch):
    image = np.zeros((30, 40, 3), np.uint8)
    drawn = []
    monkeypatch.setattr(pictures, "contact_sheet", lambda path, sheets, **options: drawn.append((sheets, options)))
    columns = {"label": np.array(["a", "a", "b"]), "coarse_label": np.array(["x", "x", "x"])}
    ids = np.array(["p/one.jpg", "p/two.jpg", "three"])
    gallery = Gallery(Features(np.eye(3, dtype=np.float32) + 1, ids, **columns))
    of_query = gallery.search_ids(["p/one.jpg"], 2)
    # A file elsewhere that happens to have the id of a gallery image is not that image.
    hits.picture(tmp_path / "n.png", [("p/one.jpg", image)], of_query, gallery, lambda row: image)
    assert [entry[1] for entry in drawn.pop()[0]["gallery"][0]] == ["query", "unknown", "unknown"]
    hits.picture(tmp_path / "n.png", [("p/one.jpg", image)], of_query, gallery, lambda row: image, [0])
    ((sheets, options),) = drawn
    assert options == {"captions": True}
    assert [[entry[1:] for entry in row] for row in sheets["gallery"]] == [
        [("query", "one.jpg\na"), ("fine", "a\n0.833"), ("coarse", "b\n0.833")]
    ]


def test_captions_of_a_row_are_level_and_clear_of_the_next_row(tmp_path):
    row = [(np.zeros((*shape, 3), np.uint8), "query", "one\ntwo\nthree") for shape in ((9, 9), (9, 5), (5, 9))]
    pictures.contact_sheet(tmp_path / "near.png", {"gallery": [row, row]}, captions=True)
    dark = np.asarray(PIL.Image.open(tmp_path / "near.png").convert("L")) < 200
    bottoms = []
    for column in np.array_split(dark, 3, axis=1):
        edges = np.flatnonzero(np.diff(column.any(axis=1), prepend=False, append=False)).reshape(-1, 2)
        (first, second) = (edge for edge in edges.tolist() if edge[1] - edge[0] > 100)  # the images, not the captions
        assert abs((first[1] - first[0]) - (second[1] - second[0])) <= 2
        bottoms.append([first[1], second[1]])
    assert np.ptp(bottoms, axis=0).max() <= 2


def test_a_caption_has_the_name_of_a_file_cut_with_an_ellipsis():
    assert hits._caption("/photos/" + "long-" * 20 + "name.jpg", "0.9").splitlines() == [
        "long-long-long-long-",
        "long-long-long-long-…",
        "0.9",
    ]
    assert hits._caption("test/17", "0.9").splitlines() == ["test/17", "0.9"]


def test_images_of_a_picture_are_drawn_at_their_proportions_and_a_usual_size(tmp_path):
    image_files.write(tmp_path / "large.png", np.zeros((1000, 2000, 3), np.uint8))
    assert hits.read(tmp_path / "large.png").shape == (200, 400, 3)
    with pytest.raises(UserError, match=r"cannot read an image: .*none\.png \(.*No such file"):
        hits.read(tmp_path / "none.png")


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("RGB", 1), ("RGBA", 3), ("P", 1), ("CMYK", 3), ("1", 3)])
def test_images_of_every_mode_are_decoded_to_the_network_s_channels(tmp_path, mode, channels):
    path = tmp_path / ("i.tif" if mode == "CMYK" else "i.png")
    PIL.Image.new("RGB", (7, 5), (255, 255, 255)).convert(mode).save(path)
    image = decode.decode_to(path, (5, 7, channels), crops.whole)
    assert image.shape == (5, 7, channels) and image.dtype == np.uint8 and image.min() > 250


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

    # A query is embedded at the layer of the gallery, by the model that made it.
    PIL.Image.new("L", (8, 8), 99).save(tmp_path / "query.png")
    for layer in ("trunk", "projector"):
        gallery = tmp_path / f"{layer}.npz"
        assert cli("embed", f"--workdir={trained_once}", f"--layer={layer}", f"--out={gallery}").returncode == 0
        done = cli("search", f"--gallery={gallery}", f"--query={tmp_path}/query.png", "--k=3")
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 4, done.stderr[-2000:]
    done = cli("evaluate", f"--features={tmp_path}/trunk.npz", f"--gallery={tmp_path}/projector.npz")
    assert done.returncode == 2 and "trunk.npz: found embeddings of another model or layer than" in done.stderr
    assert "(layer trunk, not projector); expected the same model and --layer" in done.stderr

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
            "found no --gallery; expected --gallery=FILE, written by experiments/embed.py, or --workdir=DIR.",
        ),
    ):
        done = cli("search", *arguments)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr


def test_command_lines_from_photos_to_picture(trained_once, tmp_path, cli):
    # The commands of docs/use_model.md.
    photos, saved = tmp_path / "photos", tmp_path / "saved"
    image_files.write_tree(photos, {"x/a": 3, "y/b": 2})
    assert cli("export", f"--workdir={trained_once}", f"--out={saved}").returncode == 0
    done = cli("embed", f"--model={saved}", f"--images={photos}", f"--out={tmp_path}/g.parquet")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/g.parquet: 5 embeddings of 64 dimensions\n"), done.stderr
    loaded = grafit_jax.load(saved)
    written = embeddings.load(tmp_path / "g.parquet")
    np.testing.assert_array_equal(written.embedding, loaded.embed(photos))
    done = cli("embed", f"--workdir={trained_once}", "--raw", f"--images={photos}", f"--out={tmp_path}/raw.npz")
    assert done.returncode == 0, done.stderr[-2000:]
    raw = embeddings.load(tmp_path / "raw.npz").embedding
    np.testing.assert_array_equal(raw, loaded.embed(photos, normalize=False))

    query = f"--query={photos}/x/a/00.png", f"{photos}/y"
    done = cli("search", f"--gallery={tmp_path}/g.parquet", *query, "--k=2", f"--out={tmp_path}/near.png")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split()[:3] for line in done.stdout.splitlines()]
    assert [line[0] for line in lines[1:-1:2]] == [
        f"{photos}/{name}" for name in ("x/a/00.png", "y/b/00.png", "y/b/01.png")
    ]
    assert all(query == found for query, rank, found in lines[1:-1] if rank == "1")
    assert PIL.Image.open(tmp_path / "near.png").width > 600
    done = cli("search", f"--gallery={tmp_path}/g.parquet", "--ids=02.png", "--k=1")
    assert done.returncode == 0 and done.stdout.splitlines()[1].startswith(f"{photos}/x/a/02.png")

    # The checkpoint that made a gallery embeds its queries, although the training has saved a later one.
    early = tmp_path / "early.npz"
    done = cli("embed", f"--workdir={trained_once}", "--checkpoint=14", f"--images={photos}", f"--out={early}")
    assert done.returncode == 0, done.stderr[-2000:]
    done = cli("search", f"--gallery={early}", f"--query={photos}/x/a/00.png", "--k=1")
    assert done.returncode == 0 and "1.0000" in done.stdout, done.stderr[-2000:]

    done = cli("evaluate", f"--workdir={saved}")
    assert done.returncode == 2 and "saved: found a saved model; expected the workdir of a run." in done.stderr
    shutil.rmtree(saved)
    for arguments, message in (
        (query, f"g.parquet: found no {saved}; expected the model that made it; use --workdir=DIR or --model=FOLDER."),
        ([*query, f"--model={trained_once}", "--k=9"], "found k = 9; expected at most 5"),
        (
            [*query, f"--model={trained_once}", "--layer=trunk"],
            "found --layer with --gallery, which is embedded already",
        ),
    ):
        done = cli("search", f"--gallery={tmp_path}/g.parquet", *arguments)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr, done.stderr
    for arguments, message in (
        (["--model=x"], "found no --images; expected the images to embed, such as --images=photos/."),
        ([f"--images={photos}"], "found both or neither of --workdir=DIR and --model=FOLDER; expected one."),
        (["--model=x", f"--images={photos}", "--split=test"], "found --split with --images; expected one of them"),
        ([f"--workdir={trained_once}", f"--images={photos}", "--checkpoint=best"], 'expected "newest" or the step'),
    ):
        done = cli("embed", *arguments, f"--out={tmp_path}/x.npz")
        assert done.returncode == 2 and message in done.stderr, done.stderr
    done = cli("export", f"--workdir={trained_once}")
    assert done.returncode == 2 and "found neither --out=FOLDER nor --hub=OWNER/NAME" in done.stderr
