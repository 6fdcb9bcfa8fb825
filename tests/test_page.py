"""The page of a run: numbers checked by hand and against other libraries, images, and HTML."""

import base64
import dataclasses
import hashlib
import io
import re

import numpy as np
import PIL.Image
import pytest
from sklearn.decomposition import PCA

from grafit_jax.data.readers.folder import FolderImages
from grafit_jax.data.records import Level, Records
from grafit_jax.report import by_class, confusion, curves, embedding_map, page, pictures, thumbnails
from grafit_jax.retrieval import metrics, neighbors
from helpers import pages
from helpers.image_files import write as write_image


def compose(test, *runs, ids=None):
    return page.compose(runs or (pages.run(test),), test, np.arange(len(test)) if ids is None else ids)


def opened(uri):
    return PIL.Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


# Numbers


def test_recall_by_class_counts_queries_with_another_image_of_their_class():
    label = np.array([0, 0, 1, 1, 2, 0])
    nearest = np.array([1, 2, 3, 0, 0, 0])  # hits: rows 0, 2, 5; row 4 is the only one of its class
    right, of = by_class.recall_by_class(label, nearest, label, 4)
    assert (right.tolist(), of.tolist()) == ([2, 1, 0, 0], [3, 2, 0, 0])
    # The same queries by coarse class: rows 0, 1 and 5 against rows 2 and 3.
    right, of = by_class.recall_by_class(label, nearest, np.array([1, 1, 0, 0, 0, 1]), 2)
    assert (right.tolist(), of.tolist()) == ([1, 2], [2, 3])


def test_recall_summed_over_classes_equals_the_metric():
    test = pages.odd_records()
    embedding = pages.embedding(test, noise=2.0)
    seen = neighbors.search(embedding, embedding, 1, query_ids=test.id, gallery_ids=test.id)[1]
    right, of = by_class.recall_by_class(test.label, seen[:, 0], test.label, 6)
    expected = metrics.retrieval_metrics(embedding, {"": test.label}, ks=(1,))["recall@1"]
    assert 0.1 < expected < 0.9 and right.sum() / of.sum() == pytest.approx(expected)


def test_confusion_counts_the_class_of_the_nearest():
    label = np.array([3, 3, 3, 5, 5, 9])
    nearest = np.array([1, 3, 5, 0, 4, 0])
    # 3 -> 3, 5, 9; 5 -> 3, 5; 9 -> 3, which is not compared.
    assert confusion.confusion(label, nearest, np.array([3, 5])).tolist() == [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize("shape", [(30, 6), (12, 40)])
def test_the_map_is_the_first_two_principal_components_of_unit_vectors(shape):
    embedding = np.random.default_rng(0).normal(size=shape) * np.linspace(3, 1, shape[1])
    points, shares = embedding_map.plane(embedding.astype(np.float32))
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    known = PCA(2, svd_solver="full").fit(unit)
    np.testing.assert_allclose(np.abs(points), np.abs(known.transform(unit)), atol=1e-5)
    np.testing.assert_allclose(shares, known.explained_variance_ratio_, atol=1e-6)
    for axis in points.T:
        assert axis[np.abs(axis).argmax()] > 0


def test_a_map_of_embeddings_of_rank_below_two():
    points, shares = embedding_map.plane(np.array([[1.0, 0], [0, 2], [1, 0]], np.float32))
    np.testing.assert_allclose(points[:, 1], 0, atol=1e-7)
    np.testing.assert_allclose(shares, [1, 0], atol=1e-7)
    assert np.ptp(points[:, 0]) == pytest.approx(2**0.5)
    for collapsed in (np.ones((4, 3)), np.ones((4, 1)), np.ones((1, 3))):
        points, shares = embedding_map.plane(collapsed)
        np.testing.assert_allclose(points, 0, atol=1e-7)
        assert np.all(np.isfinite(shares))


def test_a_sample_depends_on_the_seed_and_has_no_duplicates():
    drawn = embedding_map.sample(100, 10, seed=3)
    assert len({*drawn.tolist()}) == 10 and np.all(np.diff(drawn) > 0)
    assert (
        drawn.tolist()
        == embedding_map.sample(100, 10, seed=3).tolist()
        != embedding_map.sample(100, 10, seed=4).tolist()
    )
    assert embedding_map.sample(4, 10, seed=3).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 4, [0, 1, 2, 3, 4]),
        (0.13, 0.37, [0.1, 0.2, 0.3, 0.4]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (5, 5, [4, 6]),
        (0, 0, [0, 0.5]),
        (1e-7, 3e-7, [1e-7, 1.5e-7, 2e-7, 2.5e-7, 3e-7]),
    ],
)
def test_ticks_are_round_and_cover_the_values(low, high, expected):
    ticks = curves.steps(low, high)
    assert ticks[0] <= low and high <= ticks[-1]
    if low < high:
        np.testing.assert_allclose(ticks, expected, rtol=1e-9)


def test_a_chart_is_to_scale_and_its_label_names_the_values():
    drawn = pages.Page(
        curves.chart("a<b", [curves.Line(0, "x", [1, 2, 4], [0.0, 1.0, 4.0]), curves.Line(1, "y", [4], [2])])
    )
    line, single = (t[1]["points"].split() for t in drawn.all("polyline"))
    (x1, y1), (x2, y2), (x4, y4) = (map(float, point.split(",")) for point in line)
    left, right = (float(drawn.all("line", class_="axis")[0][1][key]) for key in ("x1", "x2"))
    assert [x1, x2, x4] == pytest.approx([left + (right - left) * x / 4 for x in (1, 2, 4)], abs=0.1)
    assert y1 - y4 == pytest.approx(4 * (y1 - y2), abs=0.2)
    assert y4 < y1 and single == [f"{x4:.1f},{(y1 + y4) / 2:.1f}"]
    label = drawn.all("svg")[0][1]["aria-label"]
    assert label.startswith("a<b: x from 0 in epoch 1 to 4 in epoch 4, lowest 0, highest 4; y from 2 in epoch 4")
    assert {t[2] for t in drawn.all("text")} >= {"0", "4", "epoch"}


# Images


def test_thumbnails_keep_their_aspect_ratio_and_small_images_their_pixels():
    small = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 1), np.uint8)
    got = thumbnails.thumbnails(small, np.array([2, 0]), 64)
    assert [*got] == [0, 2]
    uri = thumbnails.data_uri(got[2])
    assert uri.startswith("data:image/png") and np.array_equal(np.asarray(opened(uri)), small[2, ..., 0])
    large = np.full((1, 100, 50, 3), [[10, 200, 30]], np.uint8)
    image = thumbnails.thumbnails(large, np.array([0]), 64)[0]
    assert image.size == (32, 64) and image.getpixel((3, 3)) == (10, 200, 30)
    uri = thumbnails.data_uri(image)
    assert uri.startswith("data:image/webp") and opened(uri).size == (32, 64)


def test_a_sheet_has_every_image_in_its_cell():
    images = [PIL.Image.new("L", (4, 2), 10 * (i + 1)) for i in range(5)]
    uri, columns = thumbnails.sheet(images)
    whole = opened(uri)
    assert columns == 3 and whole.size == (12, 8)
    assert [whole.getpixel((4 * (i % 3) + 1, 4 * (i // 3) + 1)) for i in range(5)] == [10, 20, 30, 40, 50]
    assert whole.getpixel((1, 0)) == 0  # around an image that is not square


def test_thumbnails_of_images_in_files(tmp_path):
    files = np.array([write_image(tmp_path / f"{i}.png") for i in range(4)])
    lazy = FolderImages(str(tmp_path), files, 8, "squash", skip=False)
    read = lazy.read()
    got = thumbnails.thumbnails(lazy, np.array([1, 3]), 64)
    assert [*got] == [1, 3] and all(np.array_equal(np.asarray(got[i]), read[i]) for i in got)


# The page


def test_a_page_is_valid_html_with_labelled_sections():
    test = pages.odd_records()
    text = compose(test, pages.run(test), pages.run(test, "other", seed=1))
    found = pages.Page(text)
    assert text.isascii()
    ids = [attributes["id"] for _, attributes, _ in found.tags if "id" in attributes]
    assert len(ids) == len({*ids})
    assert len(found.all("h1")) == len(found.all("main")) == len(found.all("nav")) == 1
    sections = [attributes["id"] for _, attributes, _ in found.all("section")]
    assert sections == ["metrics", "curves", "gallery", "classes", "confusion", "map", "environment"]
    assert [a["href"] for _, a, _ in found.all("a")] == ["#main", *(f"#{name}" for name in sections)]
    assert all(a["aria-labelledby"] in ids for _, a, _ in found.all("section"))
    assert all(a["for"] in ids for _, a, _ in found.all("label")) and len(found.all("select")) == 3
    assert all(a["alt"] for _, a, _ in found.all("img")) and found.all("img")
    assert all(a.keys() & {"aria-label", "aria-hidden"} for _, a, _ in found.all("svg"))
    assert len(found.all("caption")) == len(found.all("table")) == 5
    assert all(a["scope"] in ("row", "col") for _, a, _ in found.all("th"))


def test_a_page_is_self_contained():
    test = pages.odd_records()
    text = compose(test)
    found = pages.Page(text)
    for _, attributes, _ in found.tags:
        for key in attributes.keys() & {"src", "href"}:
            assert attributes[key].startswith(("data:", "#")), attributes
    assert not found.all("iframe") and not re.search(r"@import|url\((?!\\?\"\$\{)", found.all("style")[0][2])
    assert {*re.findall(r"https?://[^\"'\s)]*", text)} == {"http://www.w3.org/2000/svg"}  # a namespace, in the script
    policy = found.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][1]["content"]
    script = found.all("script")[-1][2]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy


def test_odd_names_are_escaped():
    test = pages.odd_records()
    found = pages.Page(compose(test, pages.run(test, name="<i>run</i>")))
    assert not found.all("i") and not found.all("b") and len(found.all("script")) == 3
    assert tuple(found.data("map-data")["classes"]) == pages.READ
    assert found.data("confusion-data")["runs"] == ["<i>run</i>"]
    assert {h[2] for h in found.all("h3")} >= {"<script>window.ran = 1</script> (left & right)", "Ærø 猫 (</style>)"}


def test_tables_have_the_numbers_of_their_runs():
    # Pairs of images on a circle, each nearest to the other. Both are of one class, except in classes 4 and 5.
    label = [0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 4, 5]
    test = pages.records(np.array(label), np.array(label) // 2)
    angle = np.arange(12) // 2 * 0.5 + np.arange(12) % 2 * 0.01
    embedding = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    run = dataclasses.replace(pages.run(test), embedding=embedding)
    found = pages.Page(compose(test, run))
    header, *rows = found.rows("metrics")
    assert header == ["level, layer", "mAP", "R@1", "k-NN"]
    assert rows == [
        ["fine, trunk", "50.0", "81.2", "–"],
        ["coarse, trunk", "–", "–", "90.0"],
        ["fine, projector", "25.0", "–", "–"],
    ]
    header, *rows = found.rows("classes")
    odd, coarse = pages.READ, ("left & right", "</style>", "third")
    right = [[odd[c], coarse[c // 2], "2", "100.0"] for c in range(4)]
    # Lowest R@1 first.
    assert header == ["fine", "coarse", "images", "R@1"]
    assert rows[:6] == [[odd[c], coarse[2], "2", "0.0"] for c in (4, 5)] + right
    assert rows[6] == ["coarse", "images", "R@1 fine", "R@1 coarse"]
    assert rows[7:] == [[coarse[2], "4", "0.0", "100.0"]] + [[name, "4", "100.0", "100.0"] for name in coarse[:2]]
    [worst, *_] = found.data("confusion-data")["groups"]
    assert worst["name"] == "third" and worst["of"] == 2 and worst["counts"] == [[[0, 2, 0], [2, 0, 0]]]
    assert ["data.source", "npz:<dir>"] in found.rows("environment")
    assert ["packages: jax", "0.10"] in found.rows("environment")


def test_a_class_of_a_single_image_has_no_r_at_1_and_comes_last():
    label = np.array([0, 0, 1, 1, 2])
    test = pages.records(label, np.zeros(5, int))
    embedding = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, -1]], np.float32)
    _, *rows = pages.Page(compose(test, dataclasses.replace(pages.run(test), embedding=embedding))).rows("classes")
    assert [row[-1] for row in rows[:3]] == ["100.0", "100.0", "–"]


def test_two_runs_are_shown_side_by_side_with_their_difference():
    test = pages.odd_records()
    runs = [pages.run(test, noise=0.1), pages.run(test, "other", noise=4.0, seed=1)]
    header, *rows = pages.Page(compose(test, *runs)).rows("classes")
    assert header == ["fine", "coarse", "images", "R@1, grafit", "R@1, other", "gain in R@1"]
    gains = [float(row[5]) for row in rows[:6]]
    assert gains == pytest.approx([float(row[3]) - float(row[4]) for row in rows[:6]], abs=0.11) and max(gains) > 5
    header, *rows = pages.Page(compose(test, *runs)).rows("metrics")
    assert [row[:2] for row in rows[:2]] == [["fine, trunk", "grafit"], ["fine, trunk", "other"]]


def test_three_runs_share_one_chart_per_layer():
    test = pages.odd_records()
    runs = [
        pages.run(test, name, noise, seed) for seed, (name, noise) in enumerate((("a", 0.1), ("b", 1.0), ("c", 4.0)))
    ]
    found = pages.Page(compose(test, *runs))
    drawn = {a["aria-label"].partition(":")[0]: a["aria-label"] for _, a, _ in found.all("svg") if "aria-label" in a}
    for title, first in (("mAP, trunk", "0.25"), ("mAP, projector", "0.2")):
        assert all(f"{run.name} from {first} in epoch 1" in drawn[title] for run in runs)
    lines = {a["class"] for tag, a, _ in found.tags if tag == "polyline"}
    assert lines == {"line line-0", "line line-1", "line line-2"}
    assert [".line-2 {" in text for tag, _, text in found.tags if tag == "style"] == [True]
    assert found.rows("classes")[0][3:] == ["R@1, a", "R@1, b", "R@1, c"]  # the gain is defined for two runs only


def test_the_gallery_has_the_frames_of_the_picture():
    test = pages.odd_records(4)
    ids = np.arange(len(test)) + 100
    runs = [pages.run(test, noise=1.0), pages.run(test, "other", noise=3.0, seed=1)]
    found = pages.Page(compose(test, *runs, ids=ids))
    queries = pictures.queries_of(test.label, 12)
    assert test.label[queries].tolist() == [0, 1, 2, 3, 4, 5]
    query_alts = [a["alt"] for _, a, _ in found.all("img", class_="query-image")]
    assert [re.search(r"test/(\d+)", alt)[1] for alt in query_alts] == [str(ids[q]) for q in queries]
    frames = iter([a["class"] for _, a, _ in found.all("li") if a.get("class") in pictures.FRAMES])
    alts = iter([a["alt"] for _, a, _ in found.all("img") if a.get("class") != "query-image"])
    captions = iter([c[2] for c in found.all("figcaption") if "same fine class" in c[2]])
    kinds = set()
    for query in queries:
        for run in runs:
            here = []
            unit = run.embedding / np.linalg.norm(run.embedding, axis=1, keepdims=True)
            cosine = unit @ unit[query]
            cosine[query] = -2
            for rank, row in enumerate(np.argsort(-cosine)[:10], 1):
                kind = pictures.relation(test.label, test.train_label, query, row)
                alt = next(alts)
                assert next(frames) == kind and alt.startswith(f"{rank}: ") and alt.endswith(f"test/{ids[row]}")
                assert pictures.FRAMES[kind].meaning in alt
                here.append(kind)
            assert next(captions) == f"{run.name}: {here.count('fine')} of 10 in the same fine class"
            kinds |= {*here}
    assert kinds == {"fine", "coarse", "neither"} and next(alts, None) is next(frames, None) is None
    style = found.all("style")[0][2]
    assert ".coarse>img,.swatch.coarse{border:3.6px dashed #ef9a00}" in style


def levels(**labels):
    return {name: Level(label, tuple("abcdefgh")) for name, label in labels.items()}


FINE = np.tile(np.arange(8), 3)


@pytest.mark.parametrize(
    ("changes", "shown", "not_shown"),
    [
        ({"levels": levels(coarse=FINE // 4, fine=None)}, ("at level coarse.", "same coarse class"), ("same fine",)),
        ({"levels": levels(fine=FINE), "train_level": "fine"}, ("at level fine.", "all classes"), ("coarse class",)),
        (
            {"levels": levels(order=FINE // 8, tribe=FINE // 4, genus=FINE // 2, species=FINE), "train_level": "tribe"},
            ("8 classes at level species, 2 classes at level tribe.",),
            ("level genus",),
        ),
        (
            {"levels": levels(order=FINE // 4, genus=FINE // 2, species=FINE), "train_level": "species"},
            ("8 classes at level species, 4 classes at level genus.",),
            ("level order",),
        ),
        ({"levels": levels(coarse=FINE * 0, fine=FINE)}, (", 1 classes at level coarse.",), ("No class has",)),
        ({"levels": levels(coarse=FINE, fine=FINE)}, ("No class has two or more subclasses.",), ("confusion-data",)),
        ({"image": np.zeros((24, 6, 5, 1), np.uint8)}, ("8 classes at level fine",), ()),
    ],
)  # fmt: skip
def test_pages_for_each_kind_of_labels_and_images(changes, shown, not_shown):
    base = {"levels": levels(coarse=FINE // 4, fine=FINE), "image": np.ones((24, 6, 5, 3), np.uint8)} | changes
    test = Records(**base)
    embedding = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    run = dataclasses.replace(pages.run(pages.odd_records()), embedding=embedding)
    text = compose(test, run)
    body = text.partition("</style>")[2].partition("<script>")[0]
    pages.Page(text)
    assert all(s in body for s in shown) and not any(s in body for s in not_shown)


def test_curves_omit_values_that_are_not_finite():
    test = pages.odd_records()
    run = pages.run(test)
    log = [*run.log, {"step": 15, "epoch": 3, "loss": float("nan"), "learning_rate": 0.1}]
    log += [{"step": 20, "epoch": float("inf"), "loss": 1.0}, {"step": 0, "epoch": 0, "loss": 9.0}]
    found = pages.Page(compose(test, dataclasses.replace(run, log=log)))
    labels = {a["aria-label"].partition(":")[0]: a["aria-label"] for _, a, _ in found.all("svg") if "aria-label" in a}
    assert [*labels] == ["loss", "learning rate", "mAP, trunk", "mAP, projector"]
    assert "from 2 in epoch 1 to 1.5 in epoch 2" in labels["loss"] and "in epoch 3" in labels["learning rate"]


def test_a_page_of_ten_thousand_images_is_smaller_than_five_megabytes():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (500, 64, 64, 3), np.uint8)  # the worst case for compression
    label = np.arange(10_000) % 100
    names = [f"class number {i}" for i in range(100)]
    test = pages.records(label, label // 5, names, names[:20], image=noise[np.arange(10_000) % 500])
    runs = [pages.run(test, name, seed=seed) for seed, name in enumerate(("one", "two"))]
    text = compose(test, *runs)
    assert len(text) < 5_000_000
    assert "1,000 of 10,000 test images, sampled at random" in text
