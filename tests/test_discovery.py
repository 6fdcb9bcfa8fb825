"""Proposed classes: silhouettes against scikit-learn, planted clusters, the page and the CSV, the command line."""

import csv
import dataclasses
import shutil

import numpy as np
import PIL.Image
import pytest
from sklearn.metrics import silhouette_samples

from grafit_jax.data.readers import listing
from grafit_jax.errors import UserError
from grafit_jax.gallery import Gallery
from grafit_jax.report import discovered
from grafit_jax.retrieval import discovery
from grafit_jax.retrieval.discovery import Group, discover
from grafit_jax.retrieval.embeddings import Features
from helpers import pages, twins
from helpers.command_lines import main


@pytest.mark.parametrize("sizes", [(5, 7, 2), (1, 8), (1, 1, 3), (4, 4, 4, 4)])
def test_silhouettes_equal_those_of_scikit_learn(sizes):
    rng = np.random.default_rng(len(sizes))
    rows = twins.unit(rng.normal(size=(sum(sizes), 6)))
    cluster = rng.permutation(np.repeat(np.arange(len(sizes)) * 3, sizes))
    expected = silhouette_samples(rows, cluster, metric="cosine")
    np.testing.assert_allclose(discovery.silhouette(rows.astype(np.float32), cluster), expected, atol=1e-6)


def test_equal_rows_have_a_silhouette():
    rows = np.repeat(twins.unit(np.eye(3)[:2]), 3, axis=0)
    np.testing.assert_allclose(discovery.silhouette(rows, np.repeat([0, 1], 3)), np.ones(6))
    np.testing.assert_array_equal(discovery.silhouette(rows[:2], np.array([0, 1])), [0, 0])  # alone in their clusters


def planted(sizes=((30, 20, 12), (25, 18)), names=("pear", "apple"), noise=0.15, seed=0, **more):
    """Features of coarse classes with well separated finer classes of these sizes, of different lengths, shuffled."""
    rng = np.random.default_rng(seed)
    coarse = np.concatenate([np.full(sum(of), name) for of, name in zip(sizes, names, strict=True)])
    label = np.concatenate([np.full(n, f"{name} {i}") for of, name in zip(sizes, names, strict=True) for i, n in enumerate(of)])  # fmt: skip  # noqa: E501
    centre = {name: 3 * np.eye(12)[i] for i, name in enumerate(dict.fromkeys(label))}
    rows = np.array([centre[name] for name in label]) + noise * rng.normal(size=(len(label), 12))
    rows = rows * rng.uniform(0.2, 4, (len(rows), 1))
    order = rng.permutation(len(rows))
    columns = {"coarse_label": coarse[order], "label": label[order]} | more
    return Features(rows[order].astype(np.float32), np.arange(len(rows)), **columns)


def test_planted_classes_are_found_the_largest_first():
    features = planted()
    apple, pear = discover(features)
    assert (apple.name, len(apple), pear.name, len(pear)) == ("apple", 2, "pear", 3)
    for group, sizes in ((apple, (25, 18)), (pear, (30, 20, 12))):
        np.testing.assert_array_equal(features.coarse_label[group.rows], group.name)
        assert np.bincount(group.cluster).tolist() == [*sizes]
        assert [group.majority(c) for c in range(len(group))] == [(f"{group.name} {c}", 1.0) for c in range(len(group))]
        assert group.agreement["cluster_ari"] == group.agreement["purity"] == 1.0
        assert group.agreement["largest"] == max(sizes) / sum(sizes) and group.agreement["classes"] == len(sizes)
        assert max(group.silhouette, key=group.silhouette.get) == len(sizes)
        assert min(group.silhouette) == 2 and max(group.silhouette) == 10
    assert pear.proposed(1) == "pear 2"


def test_members_are_sorted_by_the_similarity_to_the_centre_of_their_cluster():
    features = planted(noise=0.5)
    (group,) = discover(features, within="pear", k=3)
    rows = twins.unit(features.embedding)[group.rows]
    for cluster in range(3):
        members = group.members(cluster)
        centre = twins.unit(rows[group.cluster == cluster].sum(0, keepdims=True))[0]
        similarity = rows[members] @ centre
        np.testing.assert_allclose(group.similarity[members], similarity, atol=1e-6)
        assert (np.diff(group.similarity[members]) <= 0).all() and set(group.cluster[members]) == {cluster}


def test_a_given_number_of_clusters_is_used_in_each_class():
    apple, pear = discover(planted(), k=4)
    assert len(apple) == len(pear) == 4 and [*apple.silhouette] == [*pear.silhouette] == [4]
    (one,) = discover(planted(), within="apple", k=1)
    assert len(one) == 1 and one.silhouette == {} and one.agreement["purity"] == 25 / 43
    small = planted(sizes=((2,), (9, 8)))
    pair, both = reversed(discover(small, k=4))  # at most as many as images
    assert (pair.name, len(pair), len(both)) == ("pear", 2, 4)


def test_classes_of_fewer_than_three_images_are_not_divided():
    features = planted(sizes=((1,), (2,), (3,), (9, 8)), names=("a", "b", "c", "d"))
    a, b, c, d = discover(features)
    assert [len(group) for group in (a, b, c, d)] == [1, 1, 2, 2]
    assert [len(group.silhouette) for group in (a, b, c)] == [0, 0, 1]
    assert [len(group) for group in discover(planted(sizes=((1,), (2,)), names=("a", "b")))] == [1, 1]


def test_classes_are_clustered_a_few_at_a_time(monkeypatch):
    sizes = ((12, 9), (2,), (8, 5, 4), (1,), (11, 6))
    features = planted(sizes=sizes, names=("a", "b", "c", "d", "e"))
    expected = discover(features, most=4)
    assert [len(group) for group in expected] == [2, 1, 3, 1, 2]
    calls = []
    whole = discovery.kmeans
    monkeypatch.setattr(discovery, "kmeans", lambda rows, ks, **of: calls.append(len(ks)) or whole(rows, ks, **of))
    monkeypatch.setattr(discovery, "_TOGETHER", 2)
    found = discover(features, most=4)
    assert {*calls} == {2, 1} and [group.name for group in found] == [*"abcde"]
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got.rows, want.rows)
        np.testing.assert_array_equal(got.cluster, want.cluster)
        assert got.silhouette == pytest.approx(want.silhouette)


def test_duplicates_are_one_cluster():
    row = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    features = Features(np.repeat(row, 6, axis=0), np.arange(6), coarse_label=np.full(6, "a"))
    (group,) = discover(features)
    assert len(group) == 1 and group.silhouette == {} and group.label is None and group.agreement == {}
    np.testing.assert_allclose(group.similarity, 1, atol=1e-6)


@pytest.mark.parametrize(
    ("columns", "names", "known"),
    [
        ({"coarse_label": "c"}, ["a", "b"], None),
        ({"coarse_label": "c", "label": "l"}, ["a", "b"], "l"),
        ({"label": "l"}, [discovery.EVERYTHING], "l"),
        ({}, [discovery.EVERYTHING], None),
        ({"coarse_label": "f", "further": ["c"], "label": "l"}, ["a", "b"], "l"),
        ({"coarse_label": "f", "further": ["c"]}, ["f"], "c"),
    ],
)
def test_classes_are_those_above_the_finest_level(columns, names, known):
    of = {"f": np.full(24, "f"), "c": np.repeat(["a", "b"], 12), "l": np.repeat(["a1", "a2", "b1", "b2"], 6)}
    further = dict(zip(["genus"], (of[name] for name in columns.get("further", ())), strict=False))
    given = {name: of[key] for name, key in columns.items() if name != "further"}
    rows = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    groups = discover(Features(rows, np.arange(24), **given, further=further), k=2)
    assert [group.name for group in groups] == names
    for group in groups:
        if known is None:
            assert group.label is None
        else:
            np.testing.assert_array_equal(group.label, of[known][group.rows])


def test_images_without_a_fine_label_do_not_count_in_the_agreement():
    features = planted(sizes=((30, 20),), names=("pear",))
    label = features.label.copy()
    label[::3] = ""
    (group,) = discover(dataclasses.replace(features, label=label), k=2)
    assert group.agreement["classes"] == 2 and group.agreement["cluster_ari"] == 1.0
    assert [group.majority(c) for c in range(2)] == [("pear 0", 1.0), ("pear 1", 1.0)]
    (group,) = discover(dataclasses.replace(features, label=np.full(50, "")), k=2)
    assert group.agreement == {} and group.majority(0) == ("", 0.0)


def test_a_class_has_the_same_clusters_alone_and_among_others():
    rng = np.random.default_rng(0)
    names = np.array(["a", "b", "c"])[rng.integers(0, 3, 90)]
    features = Features(rng.normal(size=(90, 4)).astype(np.float32), np.arange(90), coarse_label=names)
    for group in discover(features, k=4):
        (alone,) = discover(features, within=group.name, k=4)
        np.testing.assert_array_equal(alone.rows, group.rows)
        np.testing.assert_array_equal(alone.cluster, group.cluster)


def test_images_without_a_class_are_a_group_of_their_own():
    names = np.array(["a", "", "a", "", "a"])
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    groups = discover(Features(rows, np.arange(5), coarse_label=names))
    assert [(group.name, group.rows.tolist()) for group in groups] == [("a", [0, 2, 4]), ("no class", [1, 3])]


def test_errors():
    with pytest.raises(UserError, match=r"unknown class 'aple' .did you mean 'apple'.*; expected one of apple, pear"):
        discover(planted(), within="aple")
    with pytest.raises(UserError, match="found k = 0; expected 1 or more clusters"):
        discover(planted(), k=0)
    with pytest.raises(UserError, match="found at most 1 clusters; expected at least 2"):
        discover(planted(), most=1)


# The page and the CSV


def group(name="a", cluster=(0, 0, 1), label=("x", "y", "x"), rows=(2, 0, 1), **silhouette):
    similarity = np.array([0.5, 0.75, 0.25], np.float32)
    label = None if label is None else np.array(label)
    return Group(name, np.array(rows), np.array(cluster), similarity, {2: 0.125, 3: 0.0625} | silhouette, label)


def test_overview_and_summary_golden():
    single = group("b", label=("z", "z", "z"))
    header, rows = discovered.overview([group(), single])
    assert header[:4] == ["class", "images", "clusters", "silhouette"]
    # Two images are in the cluster of x or y, one in that of x: 2 of 3 have the most frequent class of their cluster.
    assert rows[0][:5] == ["a", 3, 2, 0.125, 2] and rows[0][5:7] == pytest.approx([200 / 3, 200 / 3])
    assert rows[1] == ["b", 3, 2, 0.125, 1, None, None, None]
    assert discovered.summary([group(), single]) == (
        "6 images of 2 classes in 4 clusters. In the 1 classes of several known finer classes, 66.7 % of the images "
        "are in a cluster of mostly their finer class (66.7 % with one cluster for each class); adjusted Rand index "
        "-50.0 %."
    )
    assert discovered.overview([single])[0] == header[:4]
    assert discovered.summary([single]) == "3 images of b in 2 clusters."


def test_the_page_shows_a_row_for_each_cluster_with_escaped_names():
    name = "<b>&\"'"
    images = [np.full((20, 30, 3), 60 * n, np.uint8) for n in range(3)]
    text = discovered.page(
        [group(name, label=("<i>", "y", "<i>"))], ["p/0.jpg", "p/<1>", "p/2.jpg"], images.__getitem__
    )
    found = pages.Page(text)
    assert [heading[2] for heading in found.all("h2")] == ["Overview", name]
    assert [heading[2] for heading in found.all("h3")] == [f"{name} 1", f"{name} 2"]
    notes = [note[2] for note in found.all("p", class_="note")]
    assert notes[-2:] == ["2 images, 50 % <i>", "1 image, 100 % <i>"]
    assert found.rows("overview")[1] == [name, "3", "2", "0.12", "2", "66.7", "66.7", "-50.0"]
    # Nearest to the centre first: positions 1 (row 0), 0 (row 2), then 2 (row 1).
    assert [attributes["alt"] for _, attributes, _ in found.all("img")] == [
        "y, similarity 0.750, p/0.jpg", "<i>, similarity 0.500, p/2.jpg", "<i>, similarity 0.250, p/<1>",
    ]  # fmt: skip


def test_the_csv_can_be_trained_on(tmp_path):
    files = [str(tmp_path / f"{n}.jpg") for n in range(3)]
    discovered.write_labels(tmp_path / "labels.csv", [group("é, a")], files)
    assert (tmp_path / "labels.csv").read_text(encoding="utf-8").splitlines()[1].startswith(f'{files[0]},train,"é, a"')
    examples = listing.list_images("csv", tmp_path / "labels.csv", need_test=False).splits["train"]
    expected = [(files[0], "é, a", "é, a 1"), (files[2], "é, a", "é, a 1"), (files[1], "é, a", "é, a 2")]
    assert [(e.file, *e.classes) for e in examples] == expected


# The command


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two coarse classes of grey and of coloured squares, with their embeddings: their mean colours."""
    root = tmp_path_factory.mktemp("photos")
    rng, rows, ids, labels = np.random.default_rng(0), [], [], []
    colours = {
        ("grey", "dark"): 40,
        ("grey", "light"): 200,
        ("colour", "red"): (250, 20, 20),
        ("colour", "blue"): (20, 20, 250),
    }
    for (coarse, fine), colour in colours.items():
        (root / coarse / fine).mkdir(parents=True)
        for n in range(5):
            image = np.clip(np.full((24, 24, 3), colour) + rng.integers(-9, 9, (24, 24, 3)), 0, 255).astype(np.uint8)
            PIL.Image.fromarray(image).save(root / coarse / fine / f"{n}.png")
            rows.append([*image.mean(axis=(0, 1)), 100])
            ids.append(f"{coarse}/{fine}/{n}.png")
            labels.append((coarse, fine))
    coarse, fine = (np.array(column) for column in zip(*labels, strict=True))
    files = np.array([str(root / name) for name in ids])
    rows = np.array(rows, np.float32)
    Gallery(Features(rows, np.array(ids), label=fine, coarse_label=coarse, filename=files)).save(root / "photos.npz")
    Gallery(Features(rows, np.array(ids))).save(root / "no_files.npz")
    return root


def test_the_command_writes_page_and_csv(photos, tmp_path):
    done = main("discover", f"--gallery={photos}/photos.npz", f"--out={tmp_path}/found.html")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["colour", "10", "2"], ["grey", "10", "2"]]
    assert lines[3] == (
        "20 images of 2 classes in 4 clusters. In the 2 classes of several known finer classes, 100.0 % of the images "
        "are in a cluster of mostly their finer class (50.0 % with one cluster for each class); adjusted Rand index "
        "100.0 %."
    )
    assert lines[4:] == [f"labels: {tmp_path}/found.csv", f"page: {tmp_path}/found.html"]
    assert len(pages.Page((tmp_path / "found.html").read_text()).all("img")) == 20
    with open(tmp_path / "found.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    proposed = {}
    for row in rows:
        proposed.setdefault((row["coarse"], row["fine"]), set()).add(row["path"].split("/")[-2])
    assert sorted(map(sorted, proposed.values())) == [["blue"], ["dark"], ["light"], ["red"]]


def test_labels_are_not_overwritten_and_are_written_even_if_an_image_is_lost(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    gallery = Gallery.load(photos / "photos.npz")
    moved = dataclasses.replace(gallery.features, filename=np.array([str(tmp_path / "lost.png")] * len(gallery)))
    Gallery(moved).save(tmp_path / "lost.npz")
    words = (f"--gallery={tmp_path}/lost.npz", f"--out={tmp_path}/found.html")
    done = main("discover", *words)
    assert done.returncode == 0 and "20 images are grey: cannot read an image" in done.stderr
    assert len(pages.Page((tmp_path / "found.html").read_text()).all("img")) == 20
    before = (tmp_path / "found.csv").read_text()
    assert before.count("\n") == 21
    done = main("discover", *words, "--k=3")
    assert done.stderr.startswith(
        f"error: found {tmp_path}/found.csv, which may hold corrected labels; use another --out"
    )
    assert (tmp_path / "found.csv").read_text() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gallery=photos.npz", "--within=gray"], "found unknown class 'gray' (did you mean 'grey'?)"),
        (["--gallery=no_files.npz"], "no_files.npz: found images without a file; expected a gallery of image files"),
        (["--gallery=photos.npz", "--out=a.txt"], "found --out=a.txt; expected a file that ends in .html."),
        (["--gallery=photos.npz", "--k=2", "--most=3"], "found --k and --most; expected one of them."),
        (["--gallery=photos.npz", "--layer=trunk"], "found --layer without a model; expected --workdir or --model"),
        (["--gallery=."], ".: found a folder; expected a file of embeddings; add --model or --workdir."),
        (["--gallery=.", "--model=a", "--workdir=b"], "found both --workdir and --model; expected one."),
    ],
)
def test_command_errors(photos, words, message):
    done = main("discover", *words, cwd=photos)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}"), done.stderr
    assert not (photos / "discovered.html").exists()


def test_the_command_embeds_images_with_a_model(photos, trained_once, tmp_path):
    shutil.copytree(photos / "grey", tmp_path / "grey")
    done = main("discover", f"--workdir={trained_once}", f"--gallery={tmp_path}", "--k=2", f"--out={tmp_path}/d.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:3] == ["grey", "10", "2"]
