"""Curves over the length of training: evaluations of a log, means over seeds, last and best epoch."""

import json

import PIL.Image
import pytest
from study import curves

from grafit_jax.runs import results

LOG = [
    {"step": 10, "epoch": 1, "loss": 2.0},
    {"step": 10, "eval/map": 0.25, "eval/coarse/map": 0.9, "eval/projector/map": 0.5, "eval/recall@5": 0.75},
    {"step": 20, "epoch": 2, "loss": 1.0},
    {"step": 30, "epoch": 3, "loss": 0.5},
    {"step": 30, "eval/map": 0.125, "eval/knn_top1": 0.5, "eval/gallery/recall@1": 0.6},
]


def test_a_curve_has_the_fine_metrics_of_both_layers():
    assert results.curve(LOG) == [
        {"epoch": 1, "map": 0.25, "projector/map": 0.5},
        {"epoch": 3, "map": 0.125, "knn_top1": 0.5},
    ]
    assert results.curve([]) == []


def result(row, seed, *curve, features=("trunk", "projector")):
    return {"row": row, "seed": seed, "config": {"eval.layers": features}, "run": {"curve": [*curve]}}


def test_curves_are_means_over_seeds_at_common_epochs():
    runs = [
        result("a", 0, {"epoch": 5, "map": 0.2}, {"epoch": 10, "map": 0.4, "projector/map": 0.7}),
        result("a", 1, {"epoch": 10, "map": 0.5, "projector/map": 0.8}),
    ]
    assert curves.means(runs, "map", "trunk") == pytest.approx({10: 45.0})
    assert curves.means(runs, "map", "projector") == pytest.approx({10: 75.0})
    # If the projector comes first in eval.layers, its metrics have no prefix.
    swapped = result("a", 0, {"epoch": 1, "map": 0.1, "trunk/map": 0.3}, features=("projector", "trunk"))
    assert curves.means([swapped], "map", "trunk") == pytest.approx({1: 30.0})
    assert curves.means([{"config": {}, "run": {}}], "map", "trunk") == {}  # recorded before there were curves


def test_the_last_epoch_is_shown_next_to_the_best_oracle_epoch(tmp_path):
    def at(epoch, value):
        return {"epoch": epoch, **dict.fromkeys(("map", "recall@1", "knn_top1"), value)}

    found = [
        result("baseline", 0, at(1, 0.2), at(2, 0.35), at(3, 0.3)),
        result("grafit", 0, *({**at(e, v), "projector/map": v + 0.1} for e, v in ((1, 0.1), (3, 0.4)))),
        result("once", 0, at(3, 0.4)),
    ]
    header, _, *rows = curves.render(found).splitlines()
    assert "mAP at the end | mAP, best epoch (oracle) |" in header
    assert rows[0].startswith("| `baseline` | trunk | 30.0 | 35.0 (epoch 2) |")
    assert rows[1].startswith("| `grafit` | trunk | 40.0 | 40.0 (epoch 3) |")
    assert rows[2].startswith("| `grafit` | projector | 50.0 | 50.0 (epoch 3) | – | – |")
    assert len(rows) == 3 and curves.render(found[2:]) == ""
    curves.picture(tmp_path / "p.png", found)
    with PIL.Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 600 and len(picture.convert("RGB").getcolors(2**17)) > 50


def test_a_run_records_its_curve_and_the_content_of_its_data(trained_once):
    run, metrics = (json.loads((trained_once / name).read_text()) for name in ("run.json", "metrics.json"))
    *_, last = run["curve"]
    epochs = json.loads((trained_once / "config.json").read_text())["train"]["epochs"]
    assert last["epoch"] == epochs and last["map"] == metrics["map"]
    assert last["projector/knn_top1"] == metrics["projector/knn_top1"]
    assert run["data_content"].keys() == {"train", "test"} and run["data_content"] != run["data_fingerprint"]
