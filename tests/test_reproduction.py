"""Reproducing tables: their runs, training times, and published values, on results written by hand."""

import dataclasses
import pathlib
import re
import shutil
import sys

import pytest
from absl import flags
from ml_collections import config_flags
from study import layout, pricing, published, recording, reproduction, tables

from grafit_jax import config as config_lib
from grafit_jax import config_checks, methods, open_keys
from grafit_jax.commands import training
from grafit_jax.errors import UserError
from grafit_jax.report.tables import plain_table
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
    table = tables.Table(tables.by_method("c.py", "", NAMES), {"map": "mAP"})
    return lambda **kwargs: reproduction.points(table, tmp_path / "runs", root=tmp_path, **kwargs)


def finish(point):
    runs.finish(point.directory, point.config, {"map": 0.125 * (1 + point.seed)})


def names(points):
    return [point.name for point in points]


def test_a_run_is_missing_begun_complete_or_recorded(points_of):
    baseline, clusterfit, grafit = points = points_of()
    assert [reproduction.state(point, {}) for point in points] == ["missing"] * 3
    finish(baseline)
    grafit.directory.mkdir(parents=True)
    (grafit.directory / "config.json").write_text(config_lib.to_json(grafit.config))
    known = reproduction.index(
        [recorded("clusterfit", **{"clusterfit.source": "/theirs/baseline", "clusterfit.num_clusters": 5})]
    )
    assert [reproduction.state(point, known) for point in points] == ["complete", "recorded", "begun"]
    assert names(reproduction.missing(points, known)) == ["grafit"]
    assert [r["row"] for r in reproduction.complete(points)] == ["baseline"]
    # A result of another seed, or of the clusters of another run, does not count.
    for changed in ({"seed": 1}, {"clusterfit.source": "/theirs/other", "clusterfit.num_clusters": 5}):
        other = reproduction.index(
            [recorded("clusterfit", **{"clusterfit.source": "/baseline", "clusterfit.num_clusters": 5} | changed)]
        )
        assert reproduction.state(clusterfit, other) == "missing"
    (clusterfit.directory).mkdir()
    (clusterfit.directory / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"clusterfit: found unrelated files \(thesis\.tex, …\); expected an empty"):
        reproduction.state(clusterfit, {})
    assert [r["row"] for r in reproduction.complete(points)] == ["baseline"]
    metrics = baseline.directory / "metrics.json"
    metrics.write_text("[1]")
    assert reproduction.complete(points) == []


def test_a_row_that_leaves_keys_open_is_recorded_once_its_run_has_decided_them(points_of):
    point = points_of(only=["grafit"])[0]
    open_keys.leave_open(point.config, ["model.trunk", "views.mean"])
    point.config.model.pretrained = "hf:timm/resnet18.a1_in1k"
    decided = {"model.pretrained": f"hf:timm/resnet18.a1_in1k@{'a' * 40}", "clusterfit.num_clusters": 5}
    states = [
        reproduction.state(point, reproduction.index([recorded("grafit", **decided | changed)]))
        for changed in ({}, {"model.trunk": "resnet34"}, {"views.size": 10}, {"model.pretrained": "hf:timm/resnet34"})
    ]
    assert states == ["recorded", "recorded", "missing", "missing"]
    assert pricing.price(point, [recorded("grafit", 1, **decided)]) == (60.0, 1)
    assert pricing.price(point, [recorded("grafit", 1, **decided | {"views.size": 10})]) == (None, 0)
    words = reproduction.words(point, pathlib.Path())
    assert "--config.model.pretrained=hf:timm/resnet18.a1_in1k" in words and not any("None" in word for word in words)
    open_keys.leave_open(point.config, ["model.pretrained"])
    assert not any("pretrained" in word for word in reproduction.words(point, pathlib.Path()))


def test_a_recorded_run_that_others_start_from_is_trained(points_of):
    known = reproduction.index([recorded("baseline", 1, **{"clusterfit.num_clusters": 5})])
    assert names(reproduction.missing(points_of(seeds=[1]), known)) == [
        "baseline_seed1", "clusterfit_seed1", "grafit_seed1",
    ]  # fmt: skip
    assert names(reproduction.missing(points_of(seeds=[1], only=["baseline"]), known)) == []
    assert names(reproduction.missing(points_of(seeds=[2], only=["clusterfit"]), {})) == [
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
    found = list(reproduction.all_results(points, reproduction.index([theirs, elsewhere]), {}))
    assert order == ["baseline", "baseline_seed1", "clusterfit", "clusterfit_seed1", "grafit"]
    assert [(r["row"], r["seed"], r["metrics"]["map"]) for r in found] == [
        ("baseline", 0, 0.125), ("baseline", 1, 0.25), ("clusterfit", 0, 0.125),
        ("clusterfit", 1, 0.25), ("grafit", 0, 0.125), ("grafit", 1, 0.75),
    ]  # fmt: skip
    # A complete run does not need the run that it started from.
    shutil.rmtree(points[1].directory)
    assert reproduction.result(points[3], {})["metrics"] == {"map": 0.25} and len(order) == 5


def test_a_failed_row_does_not_stop_the_others(points_of, monkeypatch, capsys):
    def pretend(config, directory):
        if config.method == "baseline":
            raise {0: UserError("loss not finite"), 1: RuntimeError("XLA")}[config.seed]
        finish(next(p for p in points if p.directory == directory))

    monkeypatch.setattr(training, "train", pretend)
    points, failed = points_of(seeds=[0, 1]), {}
    assert [(r["row"], r["seed"]) for r in reproduction.all_results(points, {}, failed)] == [
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
    assert [r["row"] for r in reproduction.all_results(points[:3:2], {}, failed)] == ["baseline", "clusterfit"]
    assert "RuntimeError: XLA" in capsys.readouterr().err  # a bug keeps its traceback

    def stopped(config, directory):
        raise Preempted(3)

    monkeypatch.setattr(training, "train", stopped)
    with pytest.raises(Preempted):
        list(reproduction.all_results(points_of(seeds=[2]), {}, {}))


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
    known = reproduction.index([recorded("grafit", 0, **{"clusterfit.num_clusters": 5})])
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
def test_jobs_train_a_table_in_processes(tmp_path, processes):
    rows = ["raw_pixels", "baseline"]
    done = processes("reproduce", "--table=quickstart", f"--rows={','.join(rows)}", "--jobs=2", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.findall("^[|] `(.*?)`", done.stdout, re.MULTILINE) == rows
    assert (tmp_path / "baseline" / "metrics.json").exists() and (tmp_path / "baseline" / "train.log").stat().st_size


@pytest.mark.slow
def test_a_run_of_another_process_does_not_hide_the_others(tmp_path, processes):
    with workdir.lock(tmp_path / "baseline"):
        done = processes(
            "reproduce", "--table=quickstart", "--rows=raw_pixels,baseline", "--jobs=2", f"--workdir={tmp_path}"
        )
    assert done.returncode == 75, done.stderr[-2000:]
    assert re.findall("^[|] `(.*?)`", done.stdout, re.MULTILINE) == ["raw_pixels"]
    assert f"left: {tmp_path}/baseline: running; start the same command again" in done.stderr


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
    assert pricing.plan(asked, {}, known).splitlines() == [
        "table  row         runs  to train  hours    recorded runs",
        "t      clusterfit  2     2         unknown  0",
        "t      baseline    2     2         1.00     2",
        "u      baseline    1     0         -        -",
        "u      grafit      1     1         unknown  0",
        "",
        "total: 1.00 hours of training for 2 runs, and 3 runs of unknown time",
    ]
    last = pricing.plan({"t": asked["t"][2:]}, {}, known, jobs=2).splitlines()[-1]
    assert last == "total: 1.00 hours of training for 2 runs, 2 at a time in 0.50 hours"
    # A recorded baseline is trained only for clusterfit.
    index = reproduction.index([recorded("baseline", seed, **{"clusterfit.num_clusters": 5}) for seed in (0, 1)])
    rows = pricing.plan({"t": points_of(only=["baseline"])}, index, []).splitlines()
    assert rows[1].split() == ["t", "baseline", "1", "0", "-", "-"]
    rows = pricing.plan({"t": points_of(only=["clusterfit"])}, index, []).splitlines()
    assert [row.split()[1:5] for row in rows[1:3]] == [
        ["clusterfit", "1", "1", "unknown"], ["baseline", "0", "1", "unknown"],
    ]  # fmt: skip


def test_a_budget_allows_runs_that_end_in_time(points_of):
    now = [1000.0]
    known = [
        recorded("baseline", 1, seconds=100.0),
        recorded("grafit", 1, seconds=200.0),
        recorded("grafit", 2, seconds=1.0, device="1 x NVIDIA H200"),  # another kind of device
    ]
    baseline, clusterfit, grafit = points_of()
    budget = pricing.Budget(600.0, known, on_cpu=True, clock=lambda: now[0])
    assert budget.refusal([baseline]) is None  # 100 s of training and 90 s around it
    now[0] += 250
    budget.trained(recorded("baseline", seconds=90.0), 250.0)
    # 350 s are left. Grafit takes 200 s, and 1.25 times the 160 s around the last run.
    assert budget.refusal([grafit]) == (
        "found 5.8 minutes left; expected 6.7 by recorded runs; start the same command again to resume"
    )
    assert budget.refusal([]) is None and budget.refusal([baseline]) is None
    assert (budget.refusal([baseline, grafit]) or "").startswith(
        "found 5.8 minutes left; expected 11.6 by recorded runs; inc"
    )
    # A run that took less than its training time does not lower the estimate.
    budget.trained(recorded("baseline", seconds=95.0), 1.0)
    assert budget.refusal([grafit]) is not None
    tight = pricing.Budget(280.0, known, on_cpu=True, clock=lambda: now[0])
    assert tight.refusal([grafit]) == (
        "found 4.7 minutes left; expected 4.8 by recorded runs; increase --budget_minutes"
    )
    other_kind = pricing.Budget(600.0, known, on_cpu=False, clock=lambda: now[0])
    assert other_kind.refusal([grafit]) is None
    assert "found no recorded run with its time" in (budget.refusal([clusterfit]) or "")


def test_runs_refused_by_a_budget_are_reported_and_not_trained(points_of, monkeypatch):
    class Budget:
        """Refuses all but the last run."""

        def __init__(self):
            self.asked, self.known = [], []

        def refusal(self, missing):
            self.asked.append([p.name for p in missing])
            return None if "grafit" in self.asked[-1] else "too long"

        def trained(self, result, seconds):
            self.known.append((result["row"], seconds >= 0))

    budget = Budget()
    points, left = points_of(), {}
    monkeypatch.setattr(training, "train", lambda config, directory: finish(points[2]))
    found = list(reproduction.all_results(points, {}, {}, left, budget))
    assert budget.asked == [["baseline"], ["baseline", "clusterfit"], ["grafit"]]  # clusterfit takes two runs
    assert [path.name for path in left] == ["baseline", "clusterfit"] and set(left.values()) == {"too long"}
    assert [r["row"] for r in found] == ["grafit"] and budget.known == [("grafit", True)]
    # The budget is not asked for complete or failed runs, and complete ones add no time.
    again, failed = Budget(), {points[0].directory: "XLA"}
    assert [r["row"] for r in reproduction.all_results(points, {}, failed, {}, again)] == ["grafit"]
    assert again.asked == [] and again.known == []
    # A workdir of something else fails only its own row, with any budget.
    (points[0].directory / "config.json").parent.mkdir(parents=True)
    (points[0].directory / "notes.txt").write_text("mine")
    failed = {}
    assert [r["row"] for r in reproduction.all_results(points, {}, failed, {}, Budget())] == ["grafit"]
    assert "found unrelated files" in failed[points[0].directory]


def test_tables_are_found_by_name_or_by_family_and_scale():
    assert tables.find("omniglot") == "omniglot"
    assert tables.find("omniglot", "cpu") == "study_omniglot"
    assert tables.find("cifar100") == tables.find("study_cifar100", "cpu") == "study_cifar100"
    assert tables.find("cifar100", "paper") == "cifar100_paper"
    assert tables.find("maskcon_cifar100") == tables.find("maskcon_cifar100", "gpu") == "maskcon_cifar100"
    assert tables.find("maskcon_cifar100", "paper") == "maskcon_cifar100_pretrained"
    for name, scale, message in (
        ("omniglott", None, r"unknown table 'omniglott' \(did you mean 'omniglot'\?\); expected one of quickstart"),
        ("imagenett", "paper", r"unknown table 'imagenett' \(did you mean 'imagenet'\?\)"),
        ("imagenet", "cpu", r"found --scale=cpu for table imagenet; expected one of paper\."),
    ):
        with pytest.raises(UserError, match=message):
            tables.find(name, scale)
    study = tables.at("cpu")
    assert {"study_cifar100", "study_omniglot", "study_ablations", "maskcon_cpu"} <= set(study)
    assert set(tables.at("cpu") + tables.at("gpu") + tables.at("paper")) <= tables.TABLES.keys()


# Methods of protocol "paper" that are ours, and in no table of the paper's methods.
OURS = {"frozen", "grafit_no_projector"}


def test_the_study_has_every_method_and_ablation_with_its_seeds():
    of_paper = {name for name, m in methods.METHODS.items() if m.protocol == "paper"} - OURS
    of_maskcon = {name for name, m in methods.METHODS.items() if m.protocol == "maskcon"}
    assert set(published.OF_PAPER) == of_paper
    for table, expected in (("study_cifar100", of_paper), ("study_omniglot", of_paper | of_maskcon)):
        seeds = {row.name: row.seeds for row in tables.TABLES[table].rows}
        assert seeds.keys() == expected and min(seeds.values()) == 2
        assert {name for name, n in seeds.items() if n == 3} == {"baseline", "baseline_mlp", "grafit"}
    twice = ("supce", "grafit_maskcon", "maskcon", "grafit", "baseline_mlp")
    now = dict.fromkeys((*of_maskcon, "snca_plus"), 1) | dict.fromkeys(twice, 2)
    as_it_was = {f"{name}_torchvision": 2 for name in now}
    assert {row.name: row.seeds for row in tables.TABLES["maskcon_cpu"].rows} == now | as_it_was
    # Each ablation is grafit with exactly one change.
    points = reproduction.points(tables.TABLES["study_ablations"], pathlib.Path("runs"), root=ROOT, seeds=[0])
    grafit = points[0]
    for point in points[1:]:
        changes = recording.differences(grafit.flat, point.flat)
        value = point.name.rpartition("_")[2]
        if value.replace(".", "").isdigit():  # the name ends with the changed value
            (change,) = changes
            assert float(change.rpartition(" -> ")[2]) == float(value), change
        else:
            keys = {change.partition(":")[0] for change in changes}
            assert keys in ({"ema.base", "ema.final"}, {"method", "model.embed_dim"}, {"method"}), changes
    assert {tables.TABLES[name].folder for name in ("study_cifar100", "study_ablations")} == {"study/cifar100"}


def parsed(words):
    """Returns the flattened config and the workdir that train.py parses from a command."""
    assert words[:2] == [sys.executable, str(ROOT / "experiments" / "train.py")]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words[1:])
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(words[1:])
    return config_lib.flatten(values.config), values.workdir


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_row_of_every_table_is_a_valid_config(name):
    table = tables.TABLES[name]
    assert len({row.name for row in table.rows}) == len(table.rows)
    source = reproduction.Source("/data", pretrained="resnet18.pth" if table.pretrained else "")
    for point in reproduction.points(table, pathlib.Path("runs"), root=ROOT, seeds=[7], source=source):
        if point.row.name != tables.RAW_PIXELS:
            config_checks.validate(point.config, num_devices=1)
            assert point.config.seed == 7
            assert parsed(reproduction.words(point, ROOT)) == (point.flat, str(point.directory))
        for heading, fact in table.facts.items():
            assert fact(point.flat), heading


def test_every_published_row_has_its_runs():
    of_paper = [t for t in published.TARGETS if t.standing]
    # Three transfer rows are [reported]; CIFAR-100 has two readings.
    assert len(of_paper) == 3 + 1 + 19 + 8 + 1 and all(t.rows for t in published.TARGETS)
    readings = {t.table: dict(t.published) for t in of_paper if 83.7 in t.published.values()}
    assert readings == {"transfer_cifar100": {"top1": 83.7}, "cifar100_fine": {"knn_top1": 83.7}}
    for target in published.TARGETS:
        table = tables.TABLES[target.table]
        rows = {row.name: row for row in table.rows}
        assert rows.keys() >= set(target.rows), target.table
        assert table.columns.keys() >= target.published.keys(), target.table
        for row in target.rows:
            seen = reproduction.points(
                table, pathlib.Path("runs"), root=ROOT, seeds=[0], only=[row],
                source=reproduction.Source(pretrained="w.pth" if table.pretrained else ""),
            )  # fmt: skip
            assert seen[0].config.model.trunk == target.trunk
    # The paper's tables: nine methods, no confirmed cell.
    for name, levels in (("cifar100_paper", 1), ("imagenet", 2), ("inaturalist2018", 7), ("inaturalist2019", 7)):
        of_table = [t for t in published.TARGETS if t.table == name and not t.standing]
        assert len(of_table) == 9 and {len(t.rows) for t in of_table} == {levels}
        assert {value for t in of_table for value in t.published.values()} == {None}


def test_transfer_trunks_are_trained_once_and_tested_at_the_published_size():
    names = [name for name in tables.TABLES if name.startswith("transfer_")]
    assert len(names) == 7 and {tables.TABLES[name].folder for name in names} == {"imagenet"} == {
        tables.TABLES["imagenet"].folder or "imagenet"
    }
    points = lambda name: reproduction.points(tables.TABLES[name], pathlib.Path("none/imagenet"), root=ROOT)  # noqa: E731
    everything = [point for name in names for point in points(name)]
    assert len({point.directory for point in everything}) == len(everything) == 5 * 4 + 2 * 2
    trunks = {p.directory: p for p in reproduction.missing(everything, {}) if p not in everything}
    assert [path.name for path in trunks] == ["baseline_fine", "grafit_fine", "grafit_fine_regnet_y_8gf"]
    # The first two are runs of table imagenet.
    of_imagenet = {point.directory: recording.key(point.flat) for point in points("imagenet")}
    assert all(of_imagenet[path] == recording.key(point.flat) for path, point in [*trunks.items()][:2])
    size = {point.name: point.config.eval.size for point in everything}
    assert size["flowers_grafit_regnet_y_8gf_384"] == 384 and size["flowers_grafit_regnet_y_8gf"] == 0
    # So no run is shown next to both published numbers, and the two are separate rows.
    runs = [
        {**of_rows(**{point.name: [{"top1": 0.99}]})[0], "method": "baseline", "config": point.flat, "run": {}}
        for point in points("transfer_flowers")
    ]
    name, _ = layout.row_names(runs, {}, tables._TUNED.facts)
    assert len(layout.markdown_table(runs, ["method"], name, {"top1": "top-1"}).splitlines()) == 2 + 4
    lines = published.render({"transfer_flowers": runs}, ["transfer_flowers"]).split("\n")
    assert [line.split(" | ")[1::2] for line in lines if "regnet" in line] == [
        ["`flowers_grafit_regnet_y_8gf_384`", "top-1", "99.00 (-0.10)"],
        ["`flowers_grafit_regnet_y_8gf`", "top-1", "99.00 (+0.00)"],
    ]


def of_rows(**metrics):
    return [{"row": row, "seed": seed, "metrics": m} for row, runs in metrics.items() for seed, m in enumerate(runs)]


def test_a_target_is_measured_ready_or_blocked(monkeypatch):
    one = published.Target("t", ("a",), "net", {"map": 50.0}, "reported")
    many = published.Target("t", ("a_x", "a_y"), "net", {"map": None, "knn_top1": None}, lacks=("x", "y"))
    assert published.state(one, {}) == "ready, not run"
    assert published.state(many, {}) == "blocked: needs x, y"
    found = {"t": of_rows(a=[{"map": 0.5}, {"map": 0.6}], a_x=[{"map": 0.1, "knn_top1": 0.2}], a_y=[{"map": 0.1}])}
    assert published.ours(one, found) == [{"map": pytest.approx(55.0)}]
    assert published.state(one, found) == "measured"
    assert published.state(many, found) == "blocked: needs x, y"  # a_y lacks one of its metrics
    assert published.state(dataclasses.replace(many, lacks=()), found) == "ready, 1 of 2 rows measured"
    monkeypatch.setattr(published, "TARGETS", (one, many))
    assert published.render(found, as_text=plain_table).splitlines() == [
        "table  row           trunk  metric    paper          ours           state",
        "t      a             net    mAP       50 [reported]  55.00 (+5.00)  measured",
        "t      a x 2 levels  net    mAP/k-NN  –              1 of 2         blocked: needs x, y",
    ]


def test_our_values_are_shown_next_to_published_ones_with_the_difference():
    recalls = [{f"recall@{k}": v for k, v in ((1, 0.6), (2, 0.72), (5, r5), (10, 0.9))} for r5 in (0.82, 0.83)]
    both = {name: of_rows(maskcon=recalls, grafit_maskcon=recalls) for name in ("maskcon_cifar100", "maskcon_cars")}
    assert published.render(both, ["maskcon_cifar100"]).splitlines()[2:] == [
        "| `maskcon_cifar100` | `grafit_maskcon` | resnet18 | R@1 / 2 / 5 / 10 "
        "| 60.57 / 71.13 / 82.32 / 89.21 [reported, pretrained] "
        "| 60.00 (-0.57) / 72.00 (+0.87) / 82.50 (+0.18) / 90.00 (+0.79) | measured |"
    ]
    assert published.render({"quickstart": of_rows(grafit=[{"map": 0.5}])}, ["quickstart"]) == ""
