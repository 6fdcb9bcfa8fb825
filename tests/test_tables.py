"""The tables of the papers and of the study: their rows, configs and published values."""

import dataclasses
import pathlib
import sys

import pytest
from absl import flags
from ml_collections import config_flags
from study import layout, published, recording, reproduction, tables

from grafit_jax import config as config_lib
from grafit_jax import config_checks, methods
from grafit_jax.errors import UserError
from grafit_jax.runs import results
from grafit_jax.runs.tables import plain_table
from helpers.command_lines import ROOT


def test_tables_are_found_by_name_or_by_family_and_scale():
    assert tables.find("omniglot") == tables.find("omniglot", "cpu") == "study_omniglot"
    assert tables.find("recipe") == "recipe"
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
OURS = {"frozen", "grafit_plus", "grafit_no_projector", "grafit_cosine", "grafit_own_class"}


def test_the_study_has_every_method_and_ablation_with_its_seeds():
    of_paper = {name for name, m in methods.METHODS.items() if m.protocol == "paper"} - OURS
    later = {"spread", "ancor"}
    of_maskcon = {name for name, m in methods.METHODS.items() if m.protocol == "maskcon"} - later
    assert set(published.OF_PAPER) == of_paper
    for table, expected in (
        ("study_cifar100", of_paper | later),
        ("study_omniglot", of_paper | of_maskcon | later),
    ):
        seeds = {row.name: row.seeds for row in tables.TABLES[table].rows}
        assert seeds.keys() == expected and min(seeds.values()) == 2
        assert {name for name, n in seeds.items() if n == 3} == {"baseline", "baseline_mlp", "grafit"}
    twice = ("supce", "grafit_maskcon", "maskcon", "grafit", "baseline_mlp")
    now = dict.fromkeys((*of_maskcon, "snca_plus"), 1) | dict.fromkeys(twice, 2)
    assert {row.name: row.seeds for row in tables.TABLES["maskcon_cpu"].rows} == now
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
    weights = "resnet18.pth" if table.pretrained else ""
    runs = pathlib.Path("runs")
    for point in reproduction.points(table, runs, root=ROOT, seeds=[7], data_dir="/data", pretrained=weights):
        if point.row.name != recording.RAW_PIXELS:
            config_checks.validate(point.config, num_devices=1)
            assert point.config.seed == 7
            assert parsed(reproduction.words(point, ROOT)) == (point.flat, str(point.directory))
        for heading, fact in table.facts.items():
            assert fact(point.flat), heading


def test_every_published_row_has_its_runs():
    of_paper = [t for t in published.TARGETS if t.standing]
    # Three transfer rows are [reported]; CIFAR-100 has two readings. The last two are of a later paper, about clusters.
    assert len(of_paper) == 3 + 1 + 19 + 8 + 1 + 2 and all(t.rows for t in published.TARGETS)
    readings = {t.table: dict(t.published) for t in of_paper if 83.7 in t.published.values()}
    assert readings == {"transfer_cifar100": {"top1": 83.7}, "cifar100_fine": {"knn_top1": 83.7}}
    for target in published.TARGETS:
        table = tables.TABLES[target.table]
        rows = {row.name: row for row in table.rows}
        assert rows.keys() >= set(target.rows), target.table
        assert {*table.columns, *results.CLUSTERS} >= target.published.keys(), target.table
        for row in target.rows:
            seen = reproduction.points(
                table, pathlib.Path("runs"), root=ROOT, seeds=[0], only=[row],
                pretrained="w.pth" if table.pretrained else "",
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
    trunks = {p.directory: p for p in reproduction.missing(everything, []) if p not in everything}
    assert [path.name for path in trunks] == ["baseline_fine", "grafit_fine", "grafit_fine_regnet_y_8gf"]
    # The first two are runs of table imagenet.
    of_imagenet = {point.directory: point.flat for point in points("imagenet")}
    assert not any(recording.differences(of_imagenet[path], trunks[path].flat) for path in [*trunks][:2])
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
