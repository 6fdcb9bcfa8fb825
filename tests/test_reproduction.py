"""Reproducing tables: their runs, training times, and published values, on results written by hand."""

import dataclasses
import pathlib
import re
import shutil

import pytest
from study import pricing, reproduction
from study.rows import Table, by_method

from grafit_jax import config as config_lib
from grafit_jax import methods, open_keys
from grafit_jax.commands import training
from grafit_jax.errors import UserError
from grafit_jax.runs import workdir
from grafit_jax.runs.preemption import Preempted
from helpers import runs
from helpers.command_lines import ROOT
from helpers.runs import small_config
from helpers.sweep_files import stub

CONFIG_FILE = """
from helpers.runs import small_config

from grafit_jax import config as config_lib
from grafit_jax import config_files


def get_config(arg=None):
    arg = config_files.parse_arg(arg, method="baseline", seed=0, init="")
    return small_config(arg.method, **{"seed": arg.seed, "clusterfit.source": arg.init, "clusterfit.num_clusters": 5})
"""
NAMES = ("baseline", "clusterfit", "grafit")


def recorded(method="grafit", seed=0, *, row=None, seconds=60.0, metrics=None, device="1 x cpu", **overrides):
    """Returns the recorded result of a run with 100 training images."""
    config = config_lib.flatten(small_config(method, **{"seed": seed, **overrides}))
    views = methods.get(method).views_per_image(config["views.num_views"])
    facts = {"train_seconds": seconds, "train_images": 100, "views_per_image": views, "device": device}
    values = metrics or {"map": 0.5}
    own = {"row": row or method, "method": method, "seed": seed, "config": config, "metrics": values}
    return own | {"run": facts}


@pytest.fixture
def points_of(tmp_path):
    """Returns a function that gives the runs of three rows; clusterfit starts from the baseline."""
    (tmp_path / "c.py").write_text(CONFIG_FILE)
    table = Table(by_method("c.py", "", NAMES), {"map": "mAP"})
    return lambda **kwargs: reproduction.points(table, tmp_path / "runs", root=tmp_path, **kwargs)


def finish(point):
    runs.finish(point.directory, point.config, {"map": 0.125 * (1 + point.seed)})


def names(points):
    return [point.name for point in points]


def test_a_run_is_done_if_complete_or_recorded(points_of):
    baseline, clusterfit, _ = points = points_of()
    assert [reproduction.is_done(point, []) for point in points] == [False] * 3
    finish(baseline)
    known = [recorded("clusterfit", **{"clusterfit.source": "/theirs/baseline", "clusterfit.num_clusters": 5})]
    assert [reproduction.is_done(point, known) for point in points] == [True, True, False]
    assert names(reproduction.missing(points, known)) == ["grafit"]
    # A result of another seed, or of the clusters of another run, does not count.
    for changed in ({"seed": 1}, {"clusterfit.source": "/theirs/other", "clusterfit.num_clusters": 5}):
        other = [recorded("clusterfit", **{"clusterfit.source": "/baseline", "clusterfit.num_clusters": 5} | changed)]
        assert not reproduction.is_done(clusterfit, other)
    (clusterfit.directory).mkdir()
    (clusterfit.directory / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"clusterfit: found unrelated files \(thesis\.tex, …\); expected an empty"):
        reproduction.is_done(clusterfit, [])


def test_a_row_that_leaves_keys_open_is_recorded_once_its_run_has_decided_them(points_of):
    point = points_of(only=["grafit"])[0]
    open_keys.leave_open(point.config, ["model.trunk", "views.mean"])
    point.config.model.pretrained = "hf:timm/resnet18.a1_in1k"
    decided = {"model.pretrained": f"hf:timm/resnet18.a1_in1k@{'a' * 40}", "clusterfit.num_clusters": 5}
    done = [
        reproduction.is_done(point, [recorded("grafit", **decided | changed)])
        for changed in ({}, {"model.trunk": "resnet34"}, {"views.size": 10}, {"model.pretrained": "hf:timm/resnet34"})
    ]
    assert done == [True, True, False, False]
    assert pricing.price(point, [recorded("grafit", 1, **decided)]) == (60.0, 1)
    assert pricing.price(point, [recorded("grafit", 1, **decided | {"views.size": 10})]) == (None, 0)
    words = reproduction.words(point, pathlib.Path())
    assert "--config.model.pretrained=hf:timm/resnet18.a1_in1k" in words and not any("None" in word for word in words)
    open_keys.leave_open(point.config, ["model.pretrained"])
    assert not any("pretrained" in word for word in reproduction.words(point, pathlib.Path()))


def test_a_recorded_run_that_others_start_from_is_trained(points_of):
    known = [recorded("baseline", 1, **{"clusterfit.num_clusters": 5})]
    assert names(reproduction.missing(points_of(seeds=[1]), known)) == [
        "baseline_seed1", "clusterfit_seed1", "grafit_seed1",
    ]  # fmt: skip
    assert names(reproduction.missing(points_of(seeds=[1], only=["baseline"]), known)) == []
    assert names(reproduction.missing(points_of(seeds=[2], only=["clusterfit"]), [])) == [
        "baseline_seed2", "clusterfit_seed2",
    ]  # fmt: skip
    assert names(points_of(only=["grafit", "baseline"])) == ["grafit", "baseline"]  # in the order of `only`
    with pytest.raises(
        UserError, match=r"found unknown row graft \(did you mean 'grafit'\?\); expected one of baseline, cl"
    ):
        points_of(only=["graft"])


def test_only_missing_runs_are_trained(points_of, monkeypatch):
    order = []

    def pretend(config, directory):
        order.append(directory.name)
        finish(next(p for p in points for p in (p, p.start) if p is not None and p.directory == directory))

    monkeypatch.setattr(training, "train", pretend)
    points = points_of(seeds=[0, 1])
    theirs = recorded("grafit", 1, metrics={"map": 0.75}, **{"clusterfit.num_clusters": 5, "eval.batch_size": 7})
    elsewhere = recorded("grafit", 0, row="grafit_large", **{"eval.size": 16})  # the same training, another evaluation
    found = list(reproduction.all_results(points, [theirs, elsewhere], {}))
    assert order == ["baseline", "baseline_seed1", "clusterfit", "clusterfit_seed1", "grafit"]
    assert [(r["row"], r["seed"], r["metrics"]["map"]) for r in found] == [
        ("baseline", 0, 0.125), ("baseline", 1, 0.25), ("clusterfit", 0, 0.125),
        ("clusterfit", 1, 0.25), ("grafit", 0, 0.125), ("grafit", 1, 0.75),
    ]  # fmt: skip
    # A complete run does not need the run that it started from.
    shutil.rmtree(points[1].directory)
    assert reproduction.result(points[3], [])["metrics"] == {"map": 0.25} and len(order) == 5


def test_a_failed_row_does_not_stop_the_others(points_of, monkeypatch, capsys):
    def pretend(config, directory):
        if config.method == "baseline":
            raise {0: UserError("loss not finite"), 1: RuntimeError("XLA")}[config.seed]
        finish(next(p for p in points if p.directory == directory))

    monkeypatch.setattr(training, "train", pretend)
    points, failed = points_of(seeds=[0, 1]), {}
    assert [(r["row"], r["seed"]) for r in reproduction.all_results(points, [], failed)] == [
        ("grafit", 0),
        ("grafit", 1),
    ]
    assert {path.name: reason for path, reason in failed.items()} == {
        "baseline": "loss not finite",
        "baseline_seed1": "RuntimeError: XLA",
        "clusterfit": "starts from baseline, which failed",
        "clusterfit_seed1": "starts from baseline_seed1, which failed",
    }
    # A failure in another folder does not count.
    failed = {points[0].directory.parent.parent / "other" / "baseline": "NaN"}
    finish(points[0])
    assert [r["row"] for r in reproduction.all_results(points[:3:2], [], failed)] == ["baseline", "clusterfit"]
    assert "RuntimeError: XLA" in capsys.readouterr().err  # a bug keeps its traceback

    def stopped(config, directory):
        raise Preempted(3)

    monkeypatch.setattr(training, "train", stopped)
    with pytest.raises(Preempted):
        list(reproduction.all_results(points_of(seeds=[2]), [], {}))


def test_parallel_runs_are_trained_after_the_runs_that_they_start_from(points_of, tmp_path, monkeypatch):
    trace, finished = tmp_path / "trace", tmp_path / "finished"
    for point in points_of(seeds=[0, 1]):
        finish(dataclasses.replace(point, directory=finished / point.name))
    succeed = f"shutil.copytree({str(finished)!r} + '/' + run.name, run, dirs_exist_ok=True)"
    code = {"baseline": "sys.exit('no luck')", "grafit_seed1": "sys.exit(75)"}

    def words(point, root):
        traced = f"import shutil\nwith open({str(trace)!r}, 'a') as f: f.write(run.name + '\\n')\n"
        return stub(traced + code.get(point.name, succeed))(point.directory)

    monkeypatch.setattr(reproduction, "words", words)
    monkeypatch.setattr(training, "train", None)  # must not be called: every run is complete or failed
    points, failed = points_of(seeds=[0, 1]), {}
    known = [recorded("grafit", 0, **{"clusterfit.num_clusters": 5})]
    left = {}
    assert reproduction.train_all(points, known, failed, left, root=ROOT, jobs=2) is False
    ran = trace.read_text().split()
    assert sorted(ran[:3]) == ["baseline", "baseline_seed1", "grafit_seed1"] and ran[3:] == ["clusterfit_seed1"]
    (baseline,) = {p.directory for p in points if p.directory.name == "baseline"}
    assert failed == {baseline: f"failed (no luck); see {baseline}/train.log"}
    code["grafit_seed1"] = succeed
    assert [path.name for path in left] == ["grafit_seed1"]  # which was stopped
    assert reproduction.train_all(points, known, dict(failed), {}, root=ROOT, jobs=2) is False
    assert sorted(trace.read_text().split()[4:]) == ["baseline", "grafit_seed1"]
    assert [(r["row"], r["seed"]) for r in reproduction.all_results(points, known, failed)] == [
        ("baseline", 1), ("clusterfit", 1), ("grafit", 0), ("grafit", 1),
    ]  # fmt: skip
    assert failed[points[2].directory] == "starts from baseline, which failed"
    # A stop signal ends it.
    monkeypatch.setattr(reproduction.runner, "run_all", lambda commands, directory, jobs: True)
    assert reproduction.train_all(points, known, {}, {}, root=ROOT, jobs=2) is True


@pytest.mark.slow
def test_jobs_train_a_table_in_processes_and_leave_a_run_of_another_process(tmp_path, processes):
    rows = "--rows=raw_pixels,baseline,grafit"
    with workdir.lock(tmp_path / "grafit"):
        done = processes("reproduce", "--table=quickstart", rows, "--jobs=2", f"--workdir={tmp_path}")
    assert done.returncode == 75, done.stderr[-2000:]
    assert re.findall("^[|] `(.*?)`", done.stdout, re.MULTILINE) == ["raw_pixels", "baseline"]
    assert (tmp_path / "baseline" / "metrics.json").exists() and (tmp_path / "baseline" / "train.log").stat().st_size
    assert f"left: {tmp_path}/grafit: running; start the same command again" in done.stderr


def test_a_price_is_the_mean_of_recorded_runs_of_the_same_config(points_of):
    baseline, clusterfit, grafit = points_of()
    known = [
        recorded("baseline", 1, seconds=30.0),
        recorded("baseline", 2, seconds=50.0),
        recorded("baseline", 3, seconds=900.0, **{"train.epochs": 5}),
        recorded("baseline", 4, seconds=900.0, row="baseline_large"),
        recorded("grafit", seconds=900.0, **{"data.source": "npz:D"}),
    ]
    assert pricing.price(baseline, known) == (40.0, 2)
    # The seed of the run that it starts from does not affect the time.
    started = recorded(
        "clusterfit", 3, seconds=70.0, **{"clusterfit.source": "runs/baseline_seed3", "clusterfit.num_clusters": 5}
    )
    assert pricing.price(clusterfit, [*known, started]) == (70.0, 1)
    assert pricing.price(clusterfit, known) == pricing.price(grafit, known) == (None, 0)


def test_a_plan_counts_every_run_once_with_its_time(points_of):
    known = [recorded("baseline", seed, seconds=1800.0) for seed in (0, 1)]
    asked = {"t": points_of(seeds=[0, 1], only=["clusterfit", "baseline"]), "u": points_of(only=["baseline", "grafit"])}
    assert pricing.plan(asked, [], known).splitlines() == [
        "table  row         runs  to train  hours    recorded runs",
        "t      clusterfit  2     2         unknown  0",
        "t      baseline    2     2         1.00     2",
        "u      baseline    1     0         -        -",
        "u      grafit      1     1         unknown  0",
        "",
        "total: 1.00 hours of training for 2 runs, and 3 runs of unknown time",
    ]
    last = pricing.plan({"t": asked["t"][2:]}, [], known, jobs=2).splitlines()[-1]
    assert last == "total: 1.00 hours of training for 2 runs, 2 at a time in 0.50 hours"
    # A recorded baseline is trained only for clusterfit.
    baselines = [recorded("baseline", seed, **{"clusterfit.num_clusters": 5}) for seed in (0, 1)]
    rows = pricing.plan({"t": points_of(only=["baseline"])}, baselines, []).splitlines()
    assert rows[1].split() == ["t", "baseline", "1", "0", "-", "-"]
    rows = pricing.plan({"t": points_of(only=["clusterfit"])}, baselines, []).splitlines()
    assert [row.split()[1:5] for row in rows[1:3]] == [
        ["clusterfit", "1", "1", "unknown"], ["baseline", "0", "1", "unknown"],
    ]  # fmt: skip
