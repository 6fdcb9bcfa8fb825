"""Images that moved or changed since a run started: which ones, and where they are now."""

import json
import os

import numpy as np
import pytest

from grafit_jax import config as config_lib
from grafit_jax import restore
from grafit_jax.data import sources
from grafit_jax.errors import UserError
from grafit_jax.retrieval.clustering import Clusters
from grafit_jax.runs import clusterfit, image_list, workdir
from helpers import image_files
from helpers.runs import small_config

LAYOUT = {"train/a": 9, "train/b": 9, "test/a": 4, "test/b": 4}


def on_photos(source, **overrides):
    values = {
        "data.source": source, "data.image_size": 8, "train.batch_size": 8, "train.epochs": 1, "eval.recall_at": (1,),
        "views.mean": (0.5, 0.5, 0.5), "views.std": (0.3, 0.3, 0.3),
    }  # fmt: skip
    return small_config(**{"method": "baseline"} | values | overrides)


def prints(records):
    return {split: of_split.fingerprint() for split, of_split in records.items()}


def begin(path, **options):
    """Writes what a run writes about its images when it starts; returns a function that compares them later."""

    def check():
        records = sources.load(image_size=8, **options)
        workdir.check_data(path, prints(records), records)

    records = sources.load(image_size=8, **options)
    workdir.put(path, "data.json", json.dumps(prints(records)))
    workdir.write_images(path, records)
    check()
    return check


def add(root):
    image_files.write(root / "train/a/new.png")


def remove(root):
    (root / "test/b/03.png").unlink()


def replace(root):
    image_files.write(root / "train/b/01.png", image_files.pixels(99, 60, 50))


def relabel(root):
    os.rename(root / "train/a/02.png", root / "train/b/moved.png")


def swap(root):
    """Swaps two images of equal size."""
    pair = [root / "train/a/00.png", root / "train/a/01.png"]
    content = [path.read_bytes() for path in pair]
    for path, bytes_ in zip(pair, reversed(content), strict=True):
        path.write_bytes(bytes_ + b" " * (max(map(len, content)) - len(bytes_)))


def everything(root):
    for change in (add, remove, replace, relabel):
        change(root)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (add, "(split train): 1 new (train/a/new.png), 0 gone, 0 changed;"),
        (remove, "(split test): 0 new, 1 gone (test/b/03.png), 0 changed;"),
        (replace, "(split train): 0 new, 0 gone, 1 changed (train/b/01.png, other bytes);"),
        (relabel, "(split train): 1 new (train/b/moved.png), 1 gone (train/a/02.png), 0 changed;"),
        (
            everything,
            "(split test, train): 2 new (train/a/new.png), 2 gone (test/b/03.png), 1 changed (train/b/01.png, other",
        ),
    ],
    ids=["add", "remove", "replace", "relabel", "everything"],
)
def test_the_error_names_new_gone_and_changed_images(tmp_path, change, found, stream):
    image_files.write_tree(tmp_path / "photos", LAYOUT)
    check = begin(tmp_path / "run", source=f"folder:{tmp_path}/photos", stream=stream)
    change(tmp_path / "photos")
    with pytest.raises(UserError) as error:
        check()
    assert f"when the run started {found}" in str(error.value)
    assert str(error.value).endswith("expected the same data; restore them or use another --workdir.")


def test_other_pixels_in_files_of_equal_size_are_described_in_general(tmp_path):
    image_files.write_tree(tmp_path / "photos", LAYOUT)
    swap(tmp_path / "photos")  # so that both have the same size
    check = begin(tmp_path / "run", source=f"folder:{tmp_path}/photos")
    swap(tmp_path / "photos")
    with pytest.raises(UserError, match=r"\(split train\): the same files in another order or with other pixels; exp"):
        check()


def test_other_labels_and_splits_in_a_csv_are_named(tmp_path):
    image_files.write_tree(tmp_path / "img", {"all": 6})
    rows = [[f"img/all/{i:02}.png", "xy"[i % 2], "xy"[i % 2] + "1", "test" if i > 3 else "train"] for i in range(6)]
    image_files.write_csv(tmp_path / "list.csv", rows)
    check = begin(tmp_path / "run", source=f"csv:{tmp_path}/list.csv")
    for row, coarse, fine, split, found in (
        (1, "y", "y2", "train", "1 changed (img/all/01.png, other fine)"),
        (2, "y", "y1", "train", "1 changed (img/all/02.png, other coarse)"),
        (3, "y", "y1", "test", "1 changed (img/all/03.png, other split)"),
    ):
        others = [[path, coarse, fine, split] if i == row else r for i, r in enumerate(rows) for path in r[:1]]
        image_files.write_csv(tmp_path / "list.csv", others)
        with pytest.raises(UserError) as error:
            check()
        assert f"0 new, 0 gone, {found};" in str(error.value)


def test_the_list_is_the_same_for_the_same_images_anywhere_and_unusual_names_are_kept(tmp_path):
    written = []
    for place in ("here", "there"):
        root = tmp_path / place
        image_files.write_tree(root, LAYOUT | {'train/ü,"c"\n': 2, "train/d\u2028": 2})
        records = sources.load(source=f"folder:{root}", image_size=8)
        written.append(image_list.dumps(records))
        (tmp_path / image_list.FILE).write_bytes(written[-1])
        assert image_list.changes(tmp_path, records) == "the same files in another order or with other pixels"
    assert written[0] == written[1]
    assert written[0][4:8] == bytes(4)  # the time in the header of gzip


def test_missing_images_are_named_before_what_their_absence_causes(tmp_path):
    # A class with a single image, or fewer images than a batch, would be errors of their own.
    image_files.write_tree(tmp_path / "photos", LAYOUT)
    begin(tmp_path / "run", source=f"folder:{tmp_path}/photos")
    files = sorted((tmp_path / "photos" / "train").rglob("*.png"))
    for file in files[1:]:
        file.unlink()
    with pytest.raises(UserError, match=rf"0 new, {len(files) - 1} gone \(.*\), 0 changed; .* model\.init\.$"):
        restore.load(on_photos(f"folder:{tmp_path}/photos"), tmp_path / "run")


def test_arrays_have_no_list_and_a_damaged_list_is_named(tmp_path):
    digits = sources.load(source="digits")
    workdir.write_images(tmp_path / "digits", digits)
    assert not (tmp_path / "digits").exists() and image_list.changes(tmp_path, digits) == ""
    image_files.write_tree(tmp_path / "photos", LAYOUT)
    check = begin(tmp_path / "run", source=f"folder:{tmp_path}/photos")
    (tmp_path / "run" / image_list.FILE).write_bytes(b"\x1f\x8b")
    add(tmp_path / "photos")
    with pytest.raises(UserError, match=r"images\.csv\.gz cannot be read .*; remove the file"):
        check()


def test_a_run_on_clusters_names_new_images_before_it_reads_the_clusters(tmp_path):
    image_files.write_tree(tmp_path / "photos", LAYOUT)
    begin(tmp_path / "run", source=f"folder:{tmp_path}/photos")
    labels = np.arange(18, dtype=np.int32) % 2
    clusterfit.save(tmp_path / "run", Clusters(np.zeros((2, 4), np.float32), labels, 0.0, 1))
    options = {"method": "clusterfit", "clusterfit.source": "runs/a", "clusterfit.num_clusters": 2}
    config = on_photos(f"folder:{tmp_path}/photos", **options)
    restore.load(config, tmp_path / "run")
    add(tmp_path / "photos")
    with pytest.raises(UserError, match=r"1 new \(train/a/new\.png\), 0 gone"):
        restore.load(config, tmp_path / "run")


@pytest.mark.parametrize("kind", config_lib.FILES)
def test_relative_and_absolute_paths_of_the_data_are_the_same_config(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    configs = [small_config(**{"data.source": f"{kind}:{place}"}) for place in ("data", f"{tmp_path}/x/../data")]
    assert config_lib.differences(*configs) == []
    home = small_config(**{"data.source": f"{kind}:~/data"})
    assert config_lib.with_absolute_paths(home).data.source == f"{kind}:{tmp_path}/home/data"
    assert home.data.source == f"{kind}:~/data"
    assert config_lib.differences(configs[0], home) == [
        f"data.source: '{kind}:{tmp_path}/data' -> '{kind}:{tmp_path}/home/data'"
    ]
    for other in ("digits", "tfds:cifar100"):
        assert config_lib.absolute(other) == other


def test_a_run_with_a_relative_path_is_resumed_and_evaluated_from_anywhere(tmp_path, monkeypatch, trains, cli):
    image_files.write_tree(tmp_path / "photos", LAYOUT)
    monkeypatch.chdir(tmp_path)
    metrics = trains(on_photos("folder:photos"), tmp_path / "run")
    assert workdir.read_config(tmp_path / "run").data.source == f"folder:{tmp_path}/photos"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    longer = on_photos("folder:../photos", **{"train.epochs": 2})
    metrics = trains(longer, tmp_path / "run", allowed=["train.epochs"])
    assert metrics["step"] == 4

    def evaluate(*arguments):  # from the root of the checkout
        return cli("evaluate", f"--workdir={tmp_path}/run", *arguments)

    assert json.loads(evaluate().stdout) == metrics
    os.rename(tmp_path / "photos", tmp_path / "moved")
    done = evaluate()
    assert done.returncode == 2
    assert f"run: found no {tmp_path}/photos; expected the images of the run; use --data_dir" in done.stderr
    assert json.loads(evaluate(f"--data_dir={tmp_path}/moved").stdout) == metrics
    assert cli("report", f"--workdir={tmp_path}/run", f"--data_dir={tmp_path}/moved").returncode == 0
    monkeypatch.chdir(tmp_path)
    run, _ = restore.newest(tmp_path / "run", data_dir="moved")  # as embed.py and search.py
    assert run.records["test"].filename[0] == f"{tmp_path}/moved/test/a/00.png"
    add(tmp_path / "moved")
    done = evaluate(f"--data_dir={tmp_path}/moved")
    assert done.returncode == 2
    assert (
        "(split train): 1 new (train/a/new.png), 0 gone, 0 changed; expected the same data; restore them, or embed the "
        "images with experiments/embed.py --images and evaluate that file with experiments/evaluate.py --features."
    ) in done.stderr
    with pytest.raises(UserError, match=r"1 new \(train/a/new\.png\), .* from this run in another --workdir, with mod"):
        trains(on_photos("folder:moved"), tmp_path / "run", allowed=["data.source", "train.epochs"])
