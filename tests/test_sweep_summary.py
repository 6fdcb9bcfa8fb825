"""Summaries of sweeps: order, means and deviations against numbers by hand, plots, and the exit status."""

import math

import pytest
from sweeps import expansion, summary

from grafit_jax.errors import UserError
from grafit_jax.runs import workdir
from helpers import runs
from helpers.sweep_files import write_file


def result(**metrics):
    run = {"train_seconds": 30.0, "views_per_image": 2}
    return {"method": "maskcon", "seed": 0, "metrics": metrics | {"step": 7}, "run": run, "config": {"x": 1}}


# Means of map: 30, 50 (with a deviation of 10 * sqrt(2)), none, and 40 percent.
COLLECTED = [
    ({"method": "maskcon", "w": 0.2, "t": 0.1}, result(map=0.3, knn_top1=0.9)),
    ({"method": "maskcon", "w": 0.5, "t": 0.1, "seed": 0}, result(map=0.4, knn_top1=0.1)),
    ({"method": "maskcon", "w": 0.8, "t": 0.1}, result(knn_top1=0.5)),
    ({"method": "maskcon", "w": 0.5, "t": 0.1, "seed": 1}, result(map=0.6, knn_top1=0.2)),
    ({"method": "coins", "w": 0.2}, result(map=0.4, knn_top1=0.8) | {"method": "coins"}),
]
VARYING = ("method", "w", "t")


def test_seeds_are_grouped_and_the_best_mean_is_first():
    groups = summary.groups(COLLECTED, "map")
    assert [(g.values["method"], g.values["w"], len(g.results)) for g in groups] == [
        ("maskcon", 0.5, 2), ("coins", 0.2, 1), ("maskcon", 0.2, 1), ("maskcon", 0.8, 1)
    ]  # fmt: skip
    assert [g.mean for g in groups[:3]] == pytest.approx([50, 40, 30]) and math.isnan(groups[3].mean)
    assert [g.numbers for g in groups] == [pytest.approx((40, 60)), pytest.approx((40,)), pytest.approx((30,)), ()]
    assert summary.table(groups, VARYING, "map").splitlines() == [
        "| method | w | t | **fine mAP** | R@1 | fine k-NN | training |",
        "|---|---|---|---|---|---|---|",
        "| `maskcon` | 0.5 | 0.1 | 50.0 ± 14.1 | – | 15.0 ± 7.1 | 2 × 30 s |",
        "| `coins` | 0.2 |  | 40.0 | – | 80.0 | 30 s |",
        "| `maskcon` | 0.2 | 0.1 | 30.0 | – | 90.0 | 30 s |",
        "| `maskcon` | 0.8 | 0.1 | – | – | 50.0 | 30 s |",
    ]
    by_knn = summary.groups(COLLECTED, "knn_top1")
    assert [g.mean for g in by_knn] == pytest.approx([90, 80, 50, 15])
    assert summary.table(by_knn, VARYING, "knn_top1").startswith("| method | w | t | **fine k-NN** | fine mAP |")
    with pytest.raises(
        UserError, match=r"found no metric 'mapp' \(did you mean 'map'\?\) in the results; expected --metric= one"
    ):
        summary.groups(COLLECTED, "mapp")
    with pytest.raises(UserError, match=r"expected --metric= one of map, knn_top1\."):  # no counts
        summary.groups([({"w": 1}, result(map=0.1, knn_top1=0.2, **{"coarse/queries_without_positive": 3}))], "x")
    assert summary.groups([], "map") == []
    assert len(summary.table([], VARYING, "map").splitlines()) == 2  # only the heading


def test_a_table_names_layers_that_differ():
    joined = result(map=0.5) | {"method": "grafit_plus", "config": {"eval.layers": ("concat", "trunk")}}
    groups = summary.groups([*COLLECTED[:1], ({"method": "grafit_plus"}, joined)], "map")
    heading, _, *rows = summary.table(groups, ("method",), "map").splitlines()
    assert heading.startswith("| method | layer | **fine mAP** |")
    assert [row.split(" | ")[:2] for row in rows] == [["| `grafit_plus`", "concat"], ["| `maskcon`", "trunk"]]


def test_an_unknown_metric_is_an_error_before_a_run(tmp_path):
    sweep = expansion.expand(write_file(tmp_path, [{"method": "byol"}, {"eval.recall_at": (1, 4)}]), "", {})
    for known in ("map", "knn_top1", "recall@4", "recall@10", "coarse/map", "projector/recall@1"):
        summary.check_metric(known, sweep)
    for wrong, near in (("mapp", "map"), ("recall@3", "recall@"), ("coarse/queries_without_positive", "")):
        with pytest.raises(
            UserError, match=rf"found --metric={wrong}.*{near}.*; expected one of map, knn_top1, top1, recall@1"
        ):
            summary.check_metric(wrong, sweep)


def test_clusters_are_metrics_of_a_sweep_that_measures_them(tmp_path):
    points = [{"method": "byol"}, {"method": "grafit", "eval.clusters": True}]
    summary.check_metric("within/cluster_ari", expansion.expand(write_file(tmp_path, points), "", {}))
    plain = expansion.expand(write_file(tmp_path, [{"method": "byol"}]), "", {})
    with pytest.raises(UserError, match="found --metric=cluster_ari"):
        summary.check_metric("cluster_ari", plain)


def draw(collected, varying=VARYING, metric="map"):
    """Returns the axes of the plot."""
    figure = summary.draw(summary.groups(collected, metric), varying, metric)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    return ax


def test_lines_are_drawn_over_the_only_varying_number():
    collected = [
        ({"method": m, "w": w}, result(map=value))
        for m, w, value in (("a", 0.5, 0.2), ("b", 0.1, 0.3), ("b", 0.5, 0.7), ("a", 0.1, 0.4))
    ]
    collected.append(({"method": "a", "w": 0.1, "seed": 3}, result(map=0.6)))
    ax = draw(collected, ("method", "w"))
    lines = [(line.get_label(), line.get_xydata().ravel().tolist()) for line in ax.get_lines()]
    assert {label: points for label, points in lines if label[0] != "_"} == {
        "method=b": pytest.approx([0.1, 30, 0.5, 70]), "method=a": pytest.approx([0.1, 50, 0.5, 20])
    }  # fmt: skip
    dots = [points for label, points in lines if label[0] == "_"]
    assert dots == [pytest.approx(p) for p in ([0.1, 30], [0.5, 70], [0.1, 40, 0.1, 60], [0.5, 20])]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale()) == ("w", "fine mAP, in percent", "linear")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["method=b", "method=a"]

    rates = [({"optimizer.learning_rate": rate}, result(map=rate)) for rate in (0.001, 0.1)]
    ax = draw(rates, ("optimizer.learning_rate", "source"))  # the other sources failed
    assert ax.get_xscale() == "log" and ax.get_legend() is None
    # Not lines over a number that some groups lack: they would not be drawn.
    ax = draw([*rates, ({"source": "digits"}, result(map=0.5))], ("optimizer.learning_rate", "source"))
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "source=digits", "optimizer.learning_rate=0.1", "optimizer.learning_rate=0.001"
    ]  # fmt: skip


def test_bars_are_drawn_for_several_keys_with_seeds_as_dots():
    ax = draw(COLLECTED)
    # w=0.8 has no map. The best group is on top.
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "method=maskcon, w=0.5, t=0.1", "method=coins, w=0.2", "method=maskcon, w=0.2, t=0.1"
    ]  # fmt: skip
    bars = [(bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width()) for bar in ax.patches]
    assert bars == [pytest.approx(bar) for bar in ((0, 0, 50), (1, 0, 40), (2, 0, 30))]
    dots = [line.get_xydata().ravel().tolist() for line in ax.get_lines()]
    assert dots == [pytest.approx(places) for places in ([40, 0, 60, 0], [40, 1], [30, 2])]
    assert [text.get_text() for text in ax.texts] == ["50.0", "40.0", "30.0"]
    assert ax.yaxis_inverted() and ax.get_xlabel() == "fine mAP, in percent"


@pytest.mark.parametrize(
    "collected",
    [[], COLLECTED[:1], COLLECTED[2:3], [({"method": "a"}, result(map=0.5)), ({"method": "b"}, result(map=0.5))]],
)
def test_few_results_can_be_drawn(collected):
    draw(collected, metric="knn_top1" if collected == COLLECTED[2:3] else "map")


def test_the_summary_lists_incomplete_points_and_sets_the_exit_status(tmp_path, capsys):
    points = [{"w": w} for w in (0.0, 0.5, 1.0)]
    sweep = expansion.expand(write_file(tmp_path, points), "", {})
    directory = tmp_path / "runs"
    names = [point.name for point in sweep.points]

    def finish(point, value):
        runs.finish(directory / point.name, point.config, {"map": value, "step": 3})

    def end(asked=names, metric="map", stopped=False):
        return summary.conclude(sweep, directory, asked, metric, stopped=stopped), capsys.readouterr().out

    finish(sweep.points[0], 0.25)
    (directory / names[1]).mkdir()
    log = directory / names[1] / workdir.LOG
    log.write_text("error: no luck\n\nexit status 2\n")
    status, out = end()
    assert status == 1 and out.splitlines()[-3:] == [
        "w=0.5: failed (error: no luck)", "w=1.0: not started", f"plot: {directory / 'sweep.png'}"
    ]  # fmt: skip
    assert "| `baseline` | 25.0 | – | – | 1 s |" in out
    assert (directory / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert end(stopped=True)[0] == 75
    assert end(asked=names[:1])[0] == 0 and end(asked=names[2:])[0] == 75  # of a shard
    log.write_text("begun")
    assert end()[0] == 75
    for point in sweep.points:
        finish(point, 0.5)
    status, out = end()
    assert status == 0 and "w=" not in out
    assert end(stopped=True)[0] == 0  # stopped after the last point

    (directory / names[2] / "metrics.json").write_text('{"map": [1]}')
    with pytest.raises(UserError, match=r"w=1.0: found '\[1\]' as map; expected the file of experiments/train.py"):
        end()
