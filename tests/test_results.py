"""Recorded results: writing, reading, merging, and errors for results that are not comparable."""

import dataclasses
import json
import re

import pytest
from study import recording, render, reproduction
from study.rows import Row, Table

from grafit_jax import config as config_lib
from grafit_jax.errors import UserError
from grafit_jax.runs import workdir
from helpers.runs import small_config

PRINTS = {"train": "ab", "test": "cd"}


def entry(method="grafit", seed=0, *, row=None, value=0.5, prints=PRINTS, content=None, **overrides):
    """Returns a result as `reproduction.result` returns it for a run."""
    config = json.loads(json.dumps(config_lib.flatten(small_config(method, **{"seed": seed, **overrides}))))
    metrics = {"map": value, "recall@1": 0.25}
    run = {"train_seconds": 90.0, "train_images": 10, "views_per_image": 2, "data_fingerprint": prints}
    run |= {} if content is None else {"data_content": content}
    return {
        "row": row or method, "method": method, "seed": seed, "metrics": metrics, "run": run, "config": config
    }  # fmt: skip


def written(path, found):
    path.write_text(recording.dumps([recording.save_form(result) for result in found]))
    return path


def test_written_results_are_read_back_and_shared_values_are_written_once(tmp_path):
    found = [entry(), entry("maskcon", 3), entry(value=0.25, content={"train": "é"})]
    path = written(tmp_path / "t.jsonl", found)
    for result in found:
        for place in config_lib.PLACES:
            del result["config"][place]
    assert recording.read(path) == found
    first, *lines = map(json.loads, path.read_text().splitlines())
    assert len(lines) == 3 and first["shared"]["run"]["train_images"] == 10
    assert set(lines[1]["config"]) >= {"method", "seed"} and "train.epochs" not in lines[1]["config"]
    # Benchmark entries of different environments.
    bench = [
        {"entry": "a", "environment": {"python": "3", "device": "x"}},
        {"entry": "b", "environment": {"python": "3"}},
    ]
    path.write_text(recording.dumps(bench))
    assert recording.load(path) == bench and json.loads(path.read_text().splitlines()[1])["environment"] == {
        "device": "x"
    }


def test_recording_again_changes_no_other_line(tmp_path):
    path = written(tmp_path / "t.jsonl", [entry(), entry(seed=1)])
    before = path.read_text()
    config = config_lib.flatten(small_config("grafit", seed=1))  # with tuples, as in a run
    written(path, [recording.read(path)[0], entry(seed=1) | {"config": config}])
    assert path.read_text() == before


def test_no_local_path_is_recorded():
    config = {"clusterfit.source": "/home/me/runs/baseline_seed1", "model.pretrained": "/data/w.pth"}
    for kind in ("npz", "csv", "folder"):
        config |= {"data.data_dir": "/data", "data.source": f"{kind}:/data/cifar"}
        saved = recording.save_form(entry("clusterfit", **config))["config"]
        assert "/" not in json.dumps(saved)
        assert saved["data.source"] == f"{kind}:cifar" and saved["clusterfit.source"] == "baseline_seed1"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [*lines[:-1], lines[-1].replace('"metrics"', '"m"')], "found a result without metrics; restore"),
        (lambda lines: [*lines[:-1], lines[-1].replace('"grafit"', '"graft"')], "unknown method 'graft'"),
        (
            lambda lines: [*lines[:-1], lines[-1].replace("0.25", '"0.25"')],
            "found recall@1 = '0.25'; expected a number; restore the file",
        ),
        (lambda lines: lines[1:], "cannot be read .KeyError: 'shared'.; restore the file from version control"),
        (lambda lines: [*lines[:-1], lines[-1][:-9]], "cannot be read"),
        (lambda lines: ["7"], "cannot be read"),
        (lambda lines: [], "cannot be read"),
    ],
)
def test_a_damaged_file_is_a_one_line_error(tmp_path, damage, message):
    path = written(tmp_path / "t.jsonl", [entry("baseline"), entry()])
    path.write_text("\n".join(damage(path.read_text().splitlines())))
    with pytest.raises(UserError, match=message) as caught:
        recording.read(path)
    assert "\n" not in str(caught.value)


def test_results_are_merged_by_row_and_seed():
    first, second, other = entry(seed=2), entry(seed=0), entry("baseline")
    newer = entry(seed=2, value=0.75)
    rows = ("baseline", "grafit")
    assert recording.merge([], [first], rows, "F") == [first]
    merged = recording.merge([first], [second, other], rows, "F")
    assert merged == [other, second, first]  # in the table's order, then by seed
    assert recording.merge(merged, [newer], rows, "F") == [other, second, newer]
    changed = entry(seed=2, **{"train.epochs": 3, "loss.temperature": 0.1})
    with pytest.raises(UserError) as caught:
        recording.merge(merged, [changed], rows, "F")
    assert (
        "F: found grafit, seed 2, of another config (loss.temperature: 0.05 -> 0.1; train.epochs: 2 -> 3); remove"
        in (str(caught.value))
    )


def test_configs_that_train_the_same_are_equal():
    config = entry()["config"]
    same = [
        config | {"data.data_dir": "/x", "data.inat_categories_file": "c.json"},
        config | {"clusterfit.num_clusters": 30, "clusterfit.source": "/x"},  # unused by grafit
        config | {"views.mean": (0.3,), "loss.instance_weight": 1},
        config | {"eval.every_epochs": 9, "eval.layers": ("trunk",), "checkpoint.keep": 5},  # not used in training
        {key: value for key, value in config.items() if key != "train.host_crops"},  # recorded before the key existed
    ]
    for other in same:
        assert recording.differences(config, other) == []
    for key, value in (("seed", 1), ("method", "byol"), ("train.host_crops", True), ("data.source", "npz:D")):
        other = config | {key: value}
        assert recording.differences(config, other) == [f"{key}: {config[key]!r} -> {value!r}"]
    # The run that clusters come from counts by its name, not its path.
    clustered = entry("clusterfit", **{"clusterfit.source": "/a/baseline", "clusterfit.num_clusters": 9})["config"]
    assert recording.differences(clustered, clustered | {"clusterfit.source": "b/baseline"}) == []
    assert recording.differences(clustered, clustered | {"clusterfit.source": "/a/baseline_seed1"}) == [
        "clusterfit.source: 'baseline' -> 'baseline_seed1'"
    ]
    assert recording.differences(clustered, clustered | {"clusterfit.num_clusters": 8}) == [
        "clusterfit.num_clusters: 9 -> 8"
    ]


def test_results_of_different_data_are_not_mixed():
    recording.check_together([entry(), entry("byol"), entry("maskcon")], "T")
    clusters = entry("clusterfit", prints=PRINTS | {"clusters": "12"})  # its labels are clusters
    recording.check_together([entry(), clusters], "T")
    other = entry("byol", 4, prints=PRINTS | {"test": "ef"})
    with pytest.raises(
        UserError, match=r"T: found .* different images or labels \(grafit, seed 0; byol, seed 4\); mea"
    ):
        recording.check_together([entry(), other], "T")
    # The same images in another order have the same content, if both results record it.
    other_order = {"prints": {"train": "12", "test": "34"}}
    content = {"train": "aa", "test": "bb"}
    here, there = entry(content=content), entry("byol", 4, content=content, **other_order)
    recording.check_together([here, there], "T")
    recording.check_together([entry("baseline"), there, here], "T")  # older, as `here`
    for results_of in (
        [here, entry("byol", 4, content=content | {"test": "cc"}, **other_order)],
        [entry(), there],  # the first result is older and has no content
        [here, entry("byol", 4, content={}, **other_order)],  # streamed images have no content
    ):
        with pytest.raises(UserError, match=r"different images or labels \(grafit, seed 0; byol, seed 4\)"):
            recording.check_together(results_of, "T")
    # Different evaluation settings.
    for change in ({"eval.knn_k": 5}, {"eval.crop": "centre"}):
        with pytest.raises(
            UserError, match=rf"T: found results with different {next(iter(change))} .*evaluate all rows"
        ):
            recording.check_together([entry(), entry("byol", **change)], "T")
    # The same photos at another size are comparable: the table shows the size.
    large = entry("byol", 4, prints=PRINTS | {"test": "ef"}, **{"data.image_size": 384})
    recording.check_together([entry(), large], "T")


CONFIG_FILE = """
from grafit_jax import config as config_lib
from grafit_jax import config_files
from helpers.runs import small_config


def get_config(arg):
    arg = config_files.parse_arg(arg, method="grafit", seed=0)
    return small_config(arg.method, seed=arg.seed)
"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A repository with one table of two rows, and a page that shows it."""
    (tmp_path / "experiments" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("<!-- t -->\n<!-- /t -->\n")
    (tmp_path / "c.py").write_text(CONFIG_FILE)
    rows = tuple(Row(name, "c.py", f"method={name}") for name in ("baseline", "grafit"))
    monkeypatch.setattr(render, "TABLES", {"t": Table(rows, {"map": "mAP"})})
    return tmp_path


ENVIRONMENT = {
    "device": "1 x cpu", "processor": "2 cores", "python": "3", "packages": {}, "revision": "r", "test_images": 5,
}  # fmt: skip


def complete(method, seed=0, **arguments):
    """Returns an entry that a page can show."""
    found = entry(method, seed, **arguments)
    return found | {"run": found["run"] | ENVIRONMENT}


def test_a_table_is_recorded_in_pieces_and_shown(house):
    render.record(house, "t", complete("grafit", 0, value=0.5))
    render.record(house, "t", complete("grafit", 1, value=0.6))
    render.record(house, "t", complete("baseline", value=0.25))
    assert [(r["row"], r["seed"]) for r in render.recorded(house)["t"]] == [
        ("baseline", 0), ("grafit", 0), ("grafit", 1),
    ]  # fmt: skip
    shown = (house / "README.md").read_text()
    assert "| `baseline` | trunk | 25.0 | 90 s |" in shown
    assert "| `grafit` | trunk | 55.0 ± 7.1 | 2 × 90 s |" in shown
    before = (house / "experiments" / "results" / "t.jsonl").read_text()
    for wrong in (
        complete("grafit", **{"train.epochs": 9}),
        complete("grafit", 2, prints={"train": "x", "test": "y"}),
        complete("maskcon", 2, row="grafit"),
    ):
        with pytest.raises(UserError, match=re.escape(str(house / "experiments" / "results" / "t.jsonl"))):
            render.record(house, "t", wrong)
    path = house / "experiments" / "results" / "t.jsonl"
    assert path.read_text() == before
    # A result under another row's name.
    for change in ({"row": "baseline"}, {"row": "other"}):
        written(path, [complete("grafit", 0) | change])
        with pytest.raises(UserError, match=re.escape(str(path))):
            render.recorded(house)
    written(path, [complete("grafit", 0, **{"train.epochs": 9})])
    with pytest.raises(
        UserError, match=r"seed 0: found another config \(train\.epochs: .*\); expected the row's own; restore"
    ):
        render.blocks(house)


def test_a_trunk_from_scratch_is_an_error_in_a_pretrained_table(house, monkeypatch):
    render.record(house, "t", complete("grafit", 0))
    changed = dataclasses.replace(render.TABLES["t"], pretrained="hf:timm/weights@1234")
    monkeypatch.setattr(render, "TABLES", {"t": changed})
    with pytest.raises(
        UserError,
        match=r"t\.jsonl, row grafit, seed 0: found another config \(model\.pretrained: '' -> 'weights'\)",
    ):
        render.recorded(house)


def test_tables_of_a_study_must_be_of_the_same_images_to_be_recorded(house, monkeypatch):
    # A second table of the same study, on other images.
    monkeypatch.setattr(render, "TABLES", dict.fromkeys(("t", "u"), render.TABLES["t"]))
    monkeypatch.setattr(render.claims, "STUDIES", {"s": ("S", ("t", "u"))})
    monkeypatch.setattr(render.claims, "CLAIMS", {"of the method": ()})
    monkeypatch.setattr(render.claims, "SUMMARY", ())
    (house / "README.md").write_text("<!-- t -->\n<!-- /t -->\n<!-- u -->\n<!-- /u -->\n")
    render.record(house, "t", complete("grafit", 0))
    with pytest.raises(UserError, match="t and u: found results on different images"):
        render.record(house, "u", complete("baseline", 0, prints={"train": "x", "test": "y"}))
    assert not (house / "experiments" / "results" / "u.jsonl").exists()


def test_a_result_that_cannot_be_recorded_is_an_error_before_training(house):
    def point(**overrides):
        row = Row("grafit", "c.py", "method=grafit")
        return reproduction.RowRun(row, 0, house / "runs" / "grafit", "", small_config(**overrides))

    render.record(house, "t", complete("grafit"))
    render.check_record(house, "t", [point()])
    with pytest.raises(UserError, match=r"t\.jsonl: found grafit, seed 0, of another config \(train\.epochs: 2 -> 3\)"):
        render.check_record(house, "t", [point(**{"train.epochs": 3})])
    with pytest.raises(UserError, match=r"row grafit, seed 1: found another config \(train\.epochs: 3 -> 2\)"):
        other = reproduction.RowRun(point().row, 1, house, "", small_config(**{"train.epochs": 3, "seed": 1}))
        render.check_record(house, "t", [other])


def test_the_config_of_a_complete_run_is_not_changed(tmp_path):
    workdir.claim(tmp_path, small_config())
    workdir.claim(tmp_path, small_config(**{"data.data_dir": "/moved"}))
    before = (tmp_path / "config.json").read_text()
    assert "/moved" in before
    (tmp_path / "metrics.json").write_text("{}")
    workdir.claim(tmp_path, small_config(**{"data.data_dir": "/moved/again"}))
    assert (tmp_path / "config.json").read_text() == before
