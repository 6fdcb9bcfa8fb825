"""Embedding files: round trips in every format, errors that name the file, and evaluation of loaded embeddings."""

import dataclasses
import mmap

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest

from grafit_jax.errors import UserError
from grafit_jax.retrieval import embeddings, metrics, neighbors
from grafit_jax.retrieval.cluster_metrics import clustering_metrics
from grafit_jax.retrieval.embeddings import Features
from grafit_jax.retrieval.evaluate import evaluate_features
from helpers import twins


def some(n=12, dim=5, **columns):
    embedding = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)
    return Features(embedding, **({"id": np.array([f"test/{i}" for i in range(n)])} | columns))


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".npy"])
def test_saved_features_are_loaded_unchanged(tmp_path, suffix):
    further = {"order": np.array([*"xxy"] * 4), "genus": np.array([*"stu"] * 4)}
    written = some(label=np.array([*"abc"] * 4), filename=np.array([f"a, b/{i}.jpg" for i in range(12)]),
                   further=further, made_by={"layer": "trunk", "config": {"views.size": 8}})  # fmt: skip
    embeddings.save(tmp_path / "deep" / f"f{suffix}", written)
    read = embeddings.load(tmp_path / "deep" / f"f{suffix}")
    assert read.coarse_label is None
    for name in ("embedding", "id", "label", "filename"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name), err_msg=name)
    assert read.embedding.dtype == np.float32 and read.made_by == written.made_by
    assert list(read.further) == ["order", "genus"]
    for name, labels in further.items():
        np.testing.assert_array_equal(read.levels[name], labels, err_msg=name)
    np.testing.assert_array_equal(read.coarser, further["genus"])


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_a_npy_file_of_short_floats_is_searched_as_it_is(tmp_path, dtype):
    written = some(300, 64)
    if dtype == np.float16:  # of another program
        np.save(tmp_path / "f.npy", written.embedding.astype(dtype))
    else:
        embeddings.save(tmp_path / "f.npy", written, dtype="bfloat16")
    read = embeddings.load(tmp_path / "f.npy")
    assert read.embedding.dtype == dtype and isinstance(read.embedding.base, np.memmap | mmap.mmap)
    rounded = written.embedding.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(read.embedding, rounded)
    similarity, index = neighbors.search(written.embedding[:9], read.embedding, 5)
    expected = twins.search(written.embedding[:9], rounded, 5)
    np.testing.assert_array_equal(index, expected[1])
    np.testing.assert_allclose(similarity, expected[0], rtol=1e-6)
    assert metrics.retrieval_metrics(read.embedding, {"": np.arange(300) % 7}) == metrics.retrieval_metrics(
        rounded, {"": np.arange(300) % 7}
    )
    embeddings.save(tmp_path / "f.npy", read)  # the file that `read` maps
    again = embeddings.load(tmp_path / "f.npy").embedding
    np.testing.assert_array_equal(again, rounded)
    assert again.dtype == dtype
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.csv", "f.made_by.json", "f.npy"]
    with pytest.raises(UserError, match=r"f\.npz: found dtype bfloat16; expected float32, or bfloat16 for \.npy"):
        embeddings.save(tmp_path / "f.npz", read, dtype="bfloat16")


def test_embeddings_of_different_models_or_layers_are_refused(capsys):
    one = {"model": "1f", "layer": "trunk", "step": 28, "path": "/runs/a"}
    embeddings.check_alike("a.npz", one, "b.npz", one | {"path": "/elsewhere"})
    other = one | {"layer": "projector", "model": "2e"}
    message = (
        r"a\.npz: found embeddings of another model or layer than b\.npz \(model 1f, not 2e; layer trunk, not "
        r"projector\); expected the same model and --layer; write one of them again with experiments/embed\.py"
    )
    with pytest.raises(UserError, match=message):
        embeddings.check_alike("a.npz", one, "b.npz", other)
    embeddings.check_alike("a.npz", {}, "b.npz", {})  # both from elsewhere
    assert capsys.readouterr().err == ""


def test_embeddings_from_elsewhere_pass_with_a_warning(capsys):
    one = {"model": "1f", "layer": "trunk", "step": 28, "path": "/runs/a"}
    for found, expected in (({}, one), (one, {})):
        embeddings.check_alike("a.npz", found, "b.npz", expected)
        names = ("a.npz", "b.npz") if found is not one else ("b.npz", "a.npz")
        expected_line = "{}: found no record of the model of these embeddings; make sure that it is that of {}"
        assert expected_line.format(*names) in capsys.readouterr().err


def test_parquet_with_empty_values_is_refused(tmp_path):
    rows = pyarrow.table({"embedding": [[1.0, 2.0], [3.0, 4.0]], "label": ["a", None]})
    pyarrow.parquet.write_table(rows, tmp_path / "f.parquet")
    with pytest.raises(UserError, match=r"f\.parquet: found 1 empty values of label; expected a value in every row"):
        embeddings.load(tmp_path / "f.parquet")


def test_row_numbers_are_the_default_ids(tmp_path):
    np.savez(tmp_path / "f.npz", embedding=np.eye(3, dtype=np.float64))
    read = embeddings.load(tmp_path / "f.npz")
    np.testing.assert_array_equal(read.id, [0, 1, 2])
    assert read.levels == {} and read.embedding.dtype == np.float32
    np.save(tmp_path / "f.npy", np.eye(3))
    np.testing.assert_array_equal(embeddings.load(tmp_path / "f.npy").id, [0, 1, 2])


E = np.eye(4, 3) + 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"label": np.zeros(4, int)}, r"f\.npz: found label; expected embedding \[N, D\] and optionally id, label,"),
        ({"embedding": E, "label": np.zeros(3, int)}, r"f\.npz: found label of shape \(3,\); expected \(4,\)"),
        ({"embedding": E, "label": np.zeros(4)}, r"f\.npz: found label of dtype float64; expected integers or strings"),
        (
            {"embedding": E, "id": np.array([0, 1, 1, 3])},
            r"f\.npz: id: found 1 duplicate ids, first 1; expected unique",
        ),
        ({"embedding": E[0]}, r"f\.npz: embedding: found shape \(3,\); expected \[n, D\]"),
        ({"embedding": E[:0]}, r"f\.npz: embedding: found shape \(0, 3\); expected \[n, D\] with at least one row"),
        ({"embedding": np.array([list("abc")])}, r"f\.npz: found embedding of dtype <U1; expected numbers"),
        ({"embedding": E * [[1], [np.nan], [1], [1]]}, r"f\.npz: embedding: found 1 rows with NaN or .*, first row 1"),
        ({"embedding": E * [[1], [1], [1e300], [1]]}, r"f\.npz: embedding: found 1 rows with NaN or .*, first row 2"),
        ({"embedding": E * [[1], [1], [1], [0]]}, r"f\.npz: embedding: found 1 zero vectors, first row 3"),
        ({"embedding": E, "label": np.array([None] * 4)}, r"f\.npz cannot be read \(Object arrays cannot be loaded"),
    ],
)
def test_invalid_files_are_a_one_line_error(tmp_path, arrays, message):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        embeddings.load(tmp_path / "f.npz")
    assert "\n" not in str(error.value) and isinstance(error.value, ValueError)


def test_missing_files_and_files_of_another_format_are_refused(tmp_path):
    for suffix in (".npz", ".parquet", ".npy"):
        with pytest.raises(UserError, match=rf"found no file .*none\{suffix}"):
            embeddings.load(tmp_path / f"none{suffix}")
        (tmp_path / f"text{suffix}").write_text("no numbers here")
        with pytest.raises(UserError, match=rf"text\{suffix} cannot be read \(.+\); write it again"):
            embeddings.load(tmp_path / f"text{suffix}")
    for call in (embeddings.load, lambda path: embeddings.save(path, some())):
        with pytest.raises(
            UserError, match=r"f\.txt: found extension '\.txt'; expected one of \.npz, \.parquet, \.npy"
        ):
            call(tmp_path / "f.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*; use another path"):
        embeddings.save(tmp_path / "file" / "f.npz", some())


# Evaluation of loaded embeddings

OPTIONS = {"ks": (1, 2), "knn_k": 3, "knn_temperature": 0.05}


def test_without_a_gallery_a_query_is_excluded_by_its_id():
    # Shuffled string ids and pairs of equal images of different classes, which would find themselves by rank.
    embedding = np.repeat(np.random.default_rng(1).normal(size=(10, 4)), 2, axis=0).astype(np.float32)
    order = np.random.default_rng(2).permutation(20)
    given = Features(embedding[order], np.array([f"image {i}" for i in order]), label=np.array([0, 1] * 10)[order])
    got = evaluate_features(given, None, leave_out=False, **OPTIONS)
    assert got["recall@1"] == 0.0
    expected = metrics.retrieval_metrics(given.embedding, {"": given.label}, **OPTIONS)
    assert got == expected


def test_with_a_gallery_rows_are_excluded_only_with_leave_out():
    test, train = some(6, label=np.arange(6) // 2), some(12, label=np.arange(12) % 3)
    got = evaluate_features(test, train, leave_out=False, **OPTIONS)
    assert got == metrics.retrieval_metrics(test.embedding, test.levels, train.embedding, train.levels, **OPTIONS)
    np.testing.assert_array_equal(test.embedding, train.embedding[:6])
    assert got["recall@1"] == np.mean(test.label == train.label[:6])  # each finds itself
    left_out = evaluate_features(test, train, leave_out=True, **OPTIONS)
    ids = {"query_ids": np.arange(6), "gallery_ids": np.arange(12)}
    assert left_out == metrics.retrieval_metrics(
        test.embedding, test.levels, train.embedding, train.levels, **ids, **OPTIONS
    )
    assert left_out != got


def test_leave_out_finds_a_query_in_the_gallery_by_its_file():
    files = np.array([f"/p/{i}.jpg" for i in range(12)])
    test = some(12, label=np.arange(12) % 3, filename=files)
    gallery = dataclasses.replace(test, id=np.array([f"other/{i}" for i in range(12)]))
    expected = evaluate_features(test, None, leave_out=False, **OPTIONS)
    assert evaluate_features(test, gallery, leave_out=True, **OPTIONS) == expected
    with pytest.raises(UserError, match="found no image on both sides, by id or file name; expected the queries"):
        evaluate_features(test, dataclasses.replace(gallery, filename=None), leave_out=True, **OPTIONS)


def test_images_are_identified_by_id_where_ids_agree():
    # Two crops of each file, whose ids differ; and the same ids with files that have moved.
    crops = some(12, label=np.arange(12) % 3, filename=np.array([f"/p/{i // 2}.jpg" for i in range(12)]))
    expected = evaluate_features(dataclasses.replace(crops, filename=None), None, leave_out=False, **OPTIONS)
    assert evaluate_features(crops, None, leave_out=False, **OPTIONS) == expected
    moved = dataclasses.replace(crops, filename=np.array([f"/new/{i}.jpg" for i in range(12)]))
    assert evaluate_features(crops, moved, leave_out=True, **OPTIONS) == expected


def test_a_level_with_unknown_labels_is_left_out_with_a_warning(capsys):
    given = some(6, label=np.array(["a", "", "b", "a", "", "b"]), coarse_label=np.arange(6) % 2)
    got = evaluate_features(given, None, leave_out=False, **OPTIONS)
    assert "coarse/map" in got and "map" not in got
    assert "found 2 images without a fine label; expected one for every image; left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("levels", "finest", "above"),
    [
        ({"label": 0, "coarse_label": 1}, 0, 1),
        ({"label": 0, "further": {"family": 2, "genus": 1}}, 0, 1),
        ({"coarse_label": 2, "further": {"genus": 1}}, 1, 2),
        ({"label": 0}, 0, None),
    ],
)
def test_clusters_are_compared_with_the_finest_level_and_within_the_next(levels, finest, above):
    columns = [np.arange(24) // 3, np.arange(24) // 6, np.arange(24) // 12]
    further = {name: columns[n] for name, n in levels.get("further", {}).items()}
    given = some(24, further=further, **{name: columns[n] for name, n in levels.items() if name != "further"})
    got = evaluate_features(given, None, leave_out=False, clusters=True, **OPTIONS)
    within = None if above is None else columns[above]
    expected = clustering_metrics(given.embedding, columns[finest], within)
    prefix = "" if "label" in levels else "genus/"
    found = {key: value for key, value in got.items() if "cluster" in key}
    assert found == {f"{prefix}{key}": value for key, value in expected.items()}
    assert len(expected) == (3 if above is None else 6)


def test_common_levels_are_scored():
    test, train = (
        some(6, label=np.arange(6) % 2, coarse_label=np.zeros(6, int)),
        some(12, coarse_label=np.arange(12) % 2),
    )
    got = evaluate_features(test, train, leave_out=False, **OPTIONS)
    assert set(got) == {f"coarse/{k}" for k in ("recall@1", "recall@2", "map", "knn_top1", "queries_without_positive")}
    partly = some(6, label=np.array(["a", "", "b", "a", "", "b"]))
    with pytest.raises(UserError, match="found 2 images without a fine label; expected one for every image; leave"):
        evaluate_features(partly, None, leave_out=False, **OPTIONS)
    with pytest.raises(UserError, match="found no level of labels on both sides"):
        evaluate_features(some(6, label=np.arange(6)), train, leave_out=False, **OPTIONS)
