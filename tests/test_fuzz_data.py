"""Fuzz tests of data files: damaged ones are read or give a one-line UserError; none is executed."""

import io
import json
import os
import pathlib
import zipfile

import numpy as np
import pytest
from hypothesis import strategies as st

from grafit_jax.data import files, sources
from grafit_jax.data.datasets import cars196, inaturalist2019, manual, taxonomy
from grafit_jax.errors import UserError
from grafit_jax.retrieval import embeddings
from grafit_jax.runs import clusterfit
from helpers import fuzzing, image_files

RNG = np.random.default_rng(0)
ARRAYS = {
    "image": RNG.integers(0, 256, (6, 2, 3, 1), np.uint8),
    "label": np.array([0, 0, 1, 1, 2, 2]),
    "coarse_label": np.array([0, 0, 0, 0, 1, 1]),
}
EMBEDDED = {"embedding": RNG.normal(size=(5, 3)).astype(np.float32), "label": np.arange(5), "id": np.arange(5)}
LABEL = np.array([0, 1, 0, 1, 1], np.int32)
CLUSTERS = {"centre": np.eye(2, 3), "label": LABEL, "inertia": 1.5, "iterations": 3}
# Replacements in an array's header: types, shapes, lengths and zip signatures.
HEADERS = (
    b"|O", b"'<f8'", b"'<U9'", b"'<M8[s]'", b"'|V0'", b"'<c16'", b"'>i8'", b"'<u8'", b"[('a','<i4')]", b"None", b"True",
    b"(1000000000000,)", b"(99999999999,99999999999)", b"(-1,)", b"()", b"(6,0,1,1)", b"\x02", b"\x03", b"((((",
    b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"\x93NUMPY\x01\x00", b"\x63\x00", b"\x09\x00", b"\x01\x00",
)  # fmt: skip


def npz(arrays, save=np.savez, method=None):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue() if method is None else zipped(members(file.getvalue()), method)


def members(data):
    archive = zipfile.ZipFile(io.BytesIO(data))
    return {name: archive.read(name) for name in archive.namelist()}


def zipped(contents, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return file.getvalue()


@st.composite
def damaged_npz(draw, arrays):
    """Damages the file, or one array in an intact archive, so that the damage reaches NumPy."""
    if draw(st.booleans()):
        kinds = [npz(arrays), npz(arrays, np.savez_compressed), npz(arrays, method=zipfile.ZIP_LZMA)]
        return draw(fuzzing.damaged([*kinds, npz(arrays, method=zipfile.ZIP_BZIP2)], fuzzing.PIECES + HEADERS))
    contents = members(npz(arrays))
    name = draw(st.sampled_from(sorted(contents)))
    whole = contents[name]
    if draw(st.booleans()):
        return zipped(contents | {name: draw(fuzzing.damaged([whole], HEADERS))})
    # Change the type or shape in the header, and keep its length.
    end = whole.index(b"\n") + 1
    header = whole[10:end].rstrip()
    for part in (header[header.index(b"'<" if b"'<" in header else b"'|") :].split(b",")[0], b"(6,)", b"False"):
        if draw(st.booleans()):
            header = header.replace(part, draw(st.sampled_from(HEADERS)))
    return zipped(contents | {name: whole[:10] + header[: end - 11].ljust(end - 11) + b"\n" + whole[end:]})


def test_npz_data_are_valid_or_refused(times, tmp_path):
    (tmp_path / "test.npz").write_bytes(npz(ARRAYS))

    def check(data):
        (tmp_path / "train.npz").write_bytes(data)
        records = fuzzing.outcome(sources.load, source=f"npz:{tmp_path}")
        if not isinstance(records, UserError):
            train = records["train"]
            assert train.image.dtype == np.uint8 and train.image.size and len(train.image.shape) == 4
            assert train.train_label.shape == (len(train),) and train.train_label.dtype == np.int32
            assert 0 <= train.train_label.min() <= train.train_label.max() < len(train.train_names)
        return records

    whole = members(npz(ARRAYS))
    array = whole["label.npy"]
    for data in (
        b"", array, zipped({}), zipped(whole | {"image.npy": b"abc"}), zipped(whole | {"label.npy": array[:-1]}),
        zipped(whole | {"label.npy": array.replace(b"(6,), ", b"(9,)*6")}),
        npz(ARRAYS | {"image": np.zeros((6, 0, 3, 1), np.uint8)}),
    ):  # fmt: skip
        assert isinstance(check(data), UserError)
    assert not isinstance(check(npz(ARRAYS)), UserError)
    fuzzing.hold(check, damaged_npz(ARRAYS), 60 * times)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_features_are_valid_or_refused(times, tmp_path, suffix):
    path = tmp_path / f"f{suffix}"
    embeddings.save(path, embeddings.Features(**EMBEDDED, further={"genus": np.arange(5)}))
    whole, table = path.read_bytes(), tmp_path / "f.csv"
    rows = table.read_bytes() if table.exists() else b"id,label\n0,a\n1,a\n2,b\n3,b\n4,c\n"

    def check(drawn):
        data, text = drawn
        path.write_bytes(data)
        table.write_bytes(text)
        found = fuzzing.outcome(embeddings.load, path)
        if not isinstance(found, UserError):
            assert found.embedding.dtype == np.float32 and np.isfinite(found.embedding).all()
            assert all(len(labels) == len(found) == len(found.id) for labels in found.levels.values())
        return found

    assert not isinstance(check((whole, rows)), UserError)
    others = {npz(EMBEDDED), npz({"embedding": b"x"}), EMBEDDED["id"].tobytes(), whole[:-1], b"PAR1" * 3, b""} - {whole}
    for data in others - ({npz(EMBEDDED)} if suffix == ".npz" else set()):
        assert isinstance(check((data, rows)), UserError)
    damage = fuzzing.damaged([whole], fuzzing.PIECES + HEADERS)
    if suffix == ".npz":
        damage = damaged_npz(EMBEDDED)
    if suffix == ".npy":
        for text in (b"", b"id\n", b"id,id\n0,0\n", b"id\n" + b"x" * 140_000, b"\xff", rows.replace(b"3", b"x" * 5000)):
            assert isinstance(check((whole, text)), UserError)
        fuzzing.hold(check, st.tuples(st.just(whole), fuzzing.damaged([rows])), 30 * times)
    fuzzing.hold(check, st.tuples(damage, st.just(rows)), 30 * times)


def test_clusters_are_valid_or_refused(times, tmp_path):
    def check(data):
        (tmp_path / "clusters.npz").write_bytes(data)
        found = fuzzing.outcome(clusterfit.load, tmp_path, 5)
        if not isinstance(found, UserError):
            assert found.label.shape == (5,) and 0 <= found.label.min() <= found.label.max() < len(found.centre)
        return found

    assert check(npz(CLUSTERS)).iterations == 3
    for change in (
        {"label": LABEL.astype(np.int64)}, {"label": LABEL[:4]}, {"label": LABEL + 1}, {"label": LABEL - 1},
        {"centre": np.zeros(2)}, {"inertia": [1, 2]}, {"iterations": np.inf},
    ):  # fmt: skip
        error = check(npz(CLUSTERS | change))
        assert isinstance(
            error, UserError
        ) and "remove the file to compute the clusters again from clusterfit.source" in str(error)
    fuzzing.hold(check, damaged_npz(CLUSTERS), 30 * times)


def test_arrays_of_objects_are_never_unpickled(tmp_path):
    canary = tmp_path / "canary"
    hostile = np.array([fuzzing.Canary(canary)] * 6, object)
    (tmp_path / "test.npz").write_bytes(npz(ARRAYS))
    for name in ARRAYS:
        (tmp_path / "train.npz").write_bytes(npz(ARRAYS | {name: hostile}))
        with pytest.raises(UserError, match=r"train\.npz cannot be read \(Object arrays"):
            sources.load(source=f"npz:{tmp_path}")
    for name in EMBEDDED:
        (tmp_path / "f.npz").write_bytes(npz(EMBEDDED | {name: hostile}))
        with pytest.raises(UserError, match=r"f\.npz cannot be read \(Object arrays"):
            embeddings.load(tmp_path / "f.npz")
    np.save(tmp_path / "f.npy", hostile)
    with pytest.raises(UserError, match=r"f\.npy cannot be read \(Array can't be memory-mapped: Python objects"):
        embeddings.load(tmp_path / "f.npy")
    for name in CLUSTERS:
        (tmp_path / "clusters.npz").write_bytes(npz(CLUSTERS | {name: hostile}))
        with pytest.raises(UserError, match=r"clusters\.npz cannot be read \(Object arrays"):
            clusterfit.load(tmp_path, 5)
    assert not canary.exists()
    np.load(tmp_path / "f.npy", allow_pickle=True)
    assert canary.exists()


def test_a_zip_bomb_is_refused_before_decompression(tmp_path, monkeypatch):
    bomb = npz(ARRAYS | {"image": np.zeros((6, 2000, 1000, 1), np.uint8)}, np.savez_compressed)
    assert len(bomb) < 20_000
    (tmp_path / "test.npz").write_bytes(bomb)
    (tmp_path / "train.npz").write_bytes(npz(ARRAYS))
    assert len(sources.load(source=f"npz:{tmp_path}")["test"]) == 6
    monkeypatch.setattr(files, "_memory", lambda: 2**20)
    unpacked = []
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda *_: unpacked.append(1))
    with pytest.raises(
        UserError, match=r"test\.npz: found arrays of 0\.0 GiB, more than this host's 0\.0 GiB; write it"
    ):
        files.read_npz(tmp_path / "test.npz", ARRAYS.__contains__, ARRAYS, "write it")
    assert not unpacked
    with pytest.raises(UserError, match="cannot be read"):  # only selected arrays count
        files.read_npz(tmp_path / "test.npz", lambda name: name == "label", (), "write it")
    assert unpacked


ROWS = [f"{i}.png,{'ab'[i // 4]},{'uvwx'[i // 2]},{'train' if i % 2 else 'test'}\n" for i in range(8)]


def test_a_csv_is_read_or_refused(times, tmp_path, capsys):
    for i in range(8):
        image_files.write(tmp_path / f"{i}.png")
    text = "path,coarse,fine,split\n" + "".join(ROWS)
    wholes = [text.encode(), text.encode("utf-8-sig"), text.replace("\n", "\r\n").encode(), text.encode("utf-16")]

    def check(data):
        (tmp_path / "l.csv").write_bytes(data)
        for options in ({"on_unreadable": "skip"}, {"stream": True}):
            records = fuzzing.outcome(sources.load, source=f"csv:{tmp_path}/l.csv", image_size=4, **options)
            if not isinstance(records, UserError):
                train = records["train"]
                assert len(train.filename) == len(train) == len(train.train_label) and len(train.fingerprint()) == 16
        return records

    assert not isinstance(check(wholes[1]), UserError)
    for old, new in (
        (b"1.png", b"1.png\0"), (b"1.png", b"1" * 5000), (b"1.png", b"1" * 200_000), (b"1.png", b'"'), (b"a", b"\0"),
        (b"u", b"\xff"),
    ):  # fmt: skip
        assert isinstance(check(wholes[0].replace(old, new)), UserError)
    assert isinstance(check(wholes[3]), UserError)
    fuzzing.hold(check, fuzzing.damaged(wholes), 25 * times)


CATEGORIES = [
    {"id": i, "name": f"s{i}"} | {level: f"{level}{i // 2}" for level in taxonomy.LEVELS[:-1]} for i in range(4)
]
ANNOTATIONS = {
    "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)],
    "annotations": [{"image_id": i, "category_id": i} for i in range(4)],
}


def test_a_taxonomy_is_valid_or_refused(times, tmp_path):
    path = tmp_path / taxonomy.FILE

    def check(data):
        path.write_bytes(data)
        found = fuzzing.outcome(lambda: taxonomy.classes(taxonomy.read(path)))
        if not isinstance(found, UserError):
            assert [*found] == [*taxonomy.LEVELS]
            assert all(0 <= c.of_fine.min() <= c.of_fine.max() < len(c.names) for c in found.values())

    for data in (b"", b"[]", b"{}", b"[5]", b"\xff", b"[" * 100_000, b"9" * 5000):
        check(data)
        with pytest.raises(UserError, match="expected iNaturalist's categories"):
            taxonomy.read(path)
    whole = json.dumps(CATEGORIES).encode()
    values = fuzzing.altered(CATEGORIES).map(json.dumps).map(str.encode)
    fuzzing.hold(check, fuzzing.damaged([whole]) | values, 40 * times)


def test_annotations_are_valid_or_refused(times, tmp_path):
    photo = pathlib.Path(image_files.write(tmp_path / inaturalist2019.IMAGES / "0.jpg")).read_bytes()
    folder = tmp_path / inaturalist2019.IMAGES
    for i in range(4):
        (folder / f"{i}.jpg").write_bytes(photo)

    def check(data):
        (folder / "train2019.json").write_bytes(data)
        listed = fuzzing.outcome(inaturalist2019._examples, folder, "train2019.json", {i: i for i in range(4)})
        if not isinstance(listed, UserError):
            assert all(0 <= row < 4 for *_, row in listed)
            return fuzzing.outcome(lambda: [manual.check_image(image, "train2019.json") for _, image, _ in listed])
        return listed

    whole = json.dumps(ANNOTATIONS).encode()
    assert check(whole) == [None] * 4
    for old, new in ((b'"category_id": 0', b'"category_id": Infinity'), (b"0.jpg", b"x" * 300), (b"0.jpg", b"\\u0000")):
        assert isinstance(check(whole.replace(old, new)), UserError)
    (folder / "0.jpg").write_bytes(image_files.png_header(40_000, 40_000))  # PIL's error is not an OSError
    assert "expected an image" in str(check(whole))
    (folder / "0.jpg").write_bytes(photo)
    values = fuzzing.altered(ANNOTATIONS).map(json.dumps).map(str.encode)
    fuzzing.hold(check, fuzzing.damaged([whole]) | values, 40 * times)


def test_matlab_files_are_valid_or_refused(times, tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    path = tmp_path / "annotations.mat"
    rows = np.zeros(3, [(name, object) for name in cars196._FIELDS])
    scipy_io.savemat(path, {"annotations": rows}, do_compression=True)
    packed = path.read_bytes()
    scipy_io.savemat(path, {"annotations": rows})
    wholes = [path.read_bytes(), packed]

    def check(data):
        path.write_bytes(data)
        found = fuzzing.outcome(cars196._read, path, "annotations")
        assert isinstance(found, UserError) or found.ndim >= 1

    check(b"")
    fuzzing.hold(check, fuzzing.damaged(wholes, fuzzing.PIECES[:12]), 3 * times)  # each example starts a process


@pytest.mark.parametrize(
    "source",
    ["npz:~nobody/x", "csv:~nobody/x", "folder:~nobody/x", "npz:" + "x" * 300, "csv:" + "x" * 300,
     "folder:" + "x" * 300, "npz:\ud800", "csv:\ud800", "folder:\ud800", "npz:/dev/null", "csv:" + os.sep],
)  # fmt: skip
def test_invalid_paths_are_refused(source):
    assert isinstance(fuzzing.outcome(sources.load, source=source), UserError)
