"""The page of a run: its writing after training and by `grafit report`."""

import json
import pathlib
import shutil
import types

import numpy as np
import pytest

from grafit_jax import restore
from grafit_jax.errors import UserError
from grafit_jax.report import write
from grafit_jax.runs import results, workdir
from helpers import image_files, pages
from helpers.runs import finish, small_config


@pytest.fixture
def finished(trained_once, pages_left, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(trained_once, tmp_path / "finished" / trained_once.name)


def test_training_writes_the_page(finished):
    found = pages.Page((finished / "report.html").read_text())
    logged = results.collect(finished)["metrics"]
    tile = [t[2] for t in found.all("dd")]
    shown = ("map", "recall@1", "knn_top1", "gallery/recall@1")
    assert tile == [f"{100 * logged[key]:.1f}" for key in shown]
    assert found.all("p", class_="run")[0][2] == finished.name


def test_a_run_killed_before_its_page_was_written_writes_it_when_restarted(finished, tmp_path, trains):
    killed = tmp_path / "killed" / finished.name
    shutil.copytree(finished, killed)
    (killed / "report.html").unlink()
    metrics = trains(workdir.read_config(killed), killed)
    assert metrics == json.loads((finished / "metrics.json").read_text())
    assert (killed / "report.html").read_text() == (finished / "report.html").read_text()
    (killed / "report.html").unlink()
    shutil.rmtree(killed / "checkpoints")  # deleted to free disk space; no page can be made
    assert trains(workdir.read_config(killed), killed) == metrics
    assert not (killed / "report.html").exists()


def test_an_error_in_the_page_is_a_warning(finished, monkeypatch, capsys):
    run, state = restore.newest(finished)
    before = (finished / "report.html").read_bytes()

    def broken(*_):
        raise RuntimeError("no\nway")

    monkeypatch.setattr(write, "compose", broken)
    write.leave(run, state, finished)
    warned = capsys.readouterr().err
    assert warned.startswith("warning: ") and "no way" in warned and warned.count("\n") == 1
    assert f"--workdir={finished}" in warned and (finished / "report.html").read_bytes() == before
    monkeypatch.setattr(write.parallel, "is_first", lambda: False)  # other processes do not compose
    write.leave(run, state, finished)
    assert capsys.readouterr().err == ""


def test_two_runs_on_one_page(finished, tmp_path):
    other = tmp_path / "other" / finished.name
    shutil.copytree(finished, other)
    write.make(finished, [other], tmp_path / "deep" / "page.html")
    found = pages.Page((tmp_path / "deep" / "page.html").read_text())
    names = [t[2] for t in found.all("p", class_="run")]
    assert names == ["finished/train_run", "other/train_run"]
    assert found.data("map-data")["maps"][0]["points"] == found.data("map-data")["maps"][1]["points"]


def test_the_same_files_are_the_same_images_at_any_size(tmp_path):
    files = image_files.write_tree(tmp_path, image_files.TREE)
    small, large = (image_files.load(tmp_path, image_size=size)["test"] for size in (4, 6))
    assert small.fingerprint() != large.fingerprint() and write._same(small, large)
    moved = pathlib.Path(next(file for file in files if "test/x/a" in file))
    moved.rename(tmp_path / "test/x/b" / "moved.png")
    assert not write._same(small, image_files.load(tmp_path, image_size=6)["test"])


def test_errors_name_the_remedy(finished, tmp_path, cli):
    for name in ("unfinished", "foreign", "elsewhere"):
        shutil.copytree(finished, tmp_path / name)
    (tmp_path / "unfinished" / "metrics.json").unlink()
    (tmp_path / "foreign" / "config.json").unlink()
    config = workdir.read_config(finished)
    config.data.holdout = 0.3
    finish(tmp_path / "elsewhere", config, results.collect(finished)["metrics"])
    (tmp_path / "elsewhere" / "data.json").unlink()
    out = tmp_path / "page.html"
    with pytest.raises(
        UserError, match=r"unfinished: found no finished run .*; let experiments/train.py finish it first"
    ):
        write.make(finished, [tmp_path / "unfinished"], out)
    with pytest.raises(UserError, match=r"foreign: found no run \(no config.json\); expected the --workdir of"):
        write.make(tmp_path / "foreign", [], out)
    with pytest.raises(UserError, match=r"elsewhere: found other test images or labels than in .*; expected the same"):
        write.make(finished, [tmp_path / "elsewhere"], out)
    with pytest.raises(UserError, match=r"cannot write .*; use another path"):
        write.make(finished, [], finished / "config.json" / "page.html")
    for no_file in ("", "/", str(tmp_path)):
        with pytest.raises(UserError, match=r"--out: found '.*'; expected a file name, such as .*report\.html"):
            write.make(finished, [], pathlib.Path(no_file))
    with pytest.raises(UserError, match=r"--workdir and --compare: found .*; expected each run once"):
        write.make(finished, [finished / ".." / finished.name], out)
    with pytest.raises(UserError, match=r"--compare: found 3 runs; expected at most 2"):
        write.make(finished, [tmp_path / name for name in "abc"], out)
    assert not out.exists()
    done = cli("report", f"--workdir={tmp_path / 'nothing'}")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_an_image_that_one_run_could_not_read_is_omitted_for_all_runs(finished, tmp_path, monkeypatch):
    test = pages.odd_records(2)
    config = small_config()
    rows = []
    for unread in ([3], [5]):
        row = np.arange(12)
        rows.append({"trunk": row[:, None] + np.ones((1, 4)), "unread": np.isin(row, unread)[:, None]})
    run = types.SimpleNamespace(records={"test": test}, config=config)
    got = []
    monkeypatch.setattr(write, "compose", lambda *given: got.append(given) or "")
    other = tmp_path / "other"
    other.symlink_to(finished)
    write._composed([finished, other], [run, run], rows)
    [(runs, records, ids)] = got
    left = [row for row in range(12) if row not in (3, 5)]
    assert ids.tolist() == left and records.label.tolist() == [row % 6 for row in left]
    assert all(run.embedding[:, 0].tolist() == [row + 1 for row in left] for run in runs)
