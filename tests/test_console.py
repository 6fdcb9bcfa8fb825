"""Messages and progress bars on stderr: the start of a run, long activities, the result, warnings."""

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax import experiment, losses, objective, parallel, pulse, queue_losses, restore
from grafit_jax.commands import training
from grafit_jax.methods import METHODS
from grafit_jax.retrieval.clustering import Clusters
from grafit_jax.runs import console, results
from grafit_jax.runs.clusterfit import relabel
from helpers.runs import small_config


def test_the_start_message_describes_the_run(capsys):
    run = experiment.load(small_config("grafit", **{"train.epochs": 3}))
    console.start(run.config, run.training, run.records["test"], restore.num_parameters(run), run.total_steps)
    state, _ = restore.initial(run)
    parameters = sum(np.asarray(x).size for x in jax.tree.leaves(state.params))
    assert capsys.readouterr().err == (
        "grafit on digits: 3 epochs, 42 steps of 64 images\n"
        "  images   899 for training, 898 for testing, of 8 x 8 pixels\n"
        "  classes  2 coarse (trained on), 10 fine\n"
        f"  network  resnet8, {parameters:,} parameters\n"
        f"  devices  {parallel.num_all_devices()} x {jax.devices()[0].device_kind}\n"
    )


def test_the_start_message_names_the_clusters_and_the_size_of_the_views(capsys):
    run = experiment.load(small_config("baseline", **{"views.size": 16}))
    clusters = Clusters(np.zeros((7, 4), np.float32), np.arange(899) % 7, 0.0, 1)
    console.start(run.config, relabel(run.records["train"], clusters), run.records["test"], 1234, 28)
    said = capsys.readouterr().err
    assert "of 8 x 8 pixels, seen at 16 x 16\n" in said
    assert "  classes  2 coarse, 10 fine, 7 cluster (trained on)\n" in said


def test_the_result_is_a_small_table_in_percent_and_names_the_page(trained_once, capsys):
    run, _ = restore.newest(trained_once)
    metrics = json.loads((trained_once / "metrics.json").read_text())
    training.say_result(run, metrics, trained_once / "report.html")
    title, header, *rows, page = capsys.readouterr().err.strip().splitlines()
    assert title == "grafit after step 28, in percent:"
    assert header.split() == ["mAP", "R@1", "k-NN", "R@1", "from", "training", "images"]
    expected = []
    for layer, prefix in (("trunk", ""), ("projector", "projector/")):
        for level, of_level in (("fine", ""), ("coarse", "coarse/")):
            values = [metrics[f"{prefix}{of_level}{key}"] for key in (*results.HEADLINE, "gallery/recall@1")]
            expected.append([f"{layer},", level, *(f"{100 * v:.1f}" for v in values)])
    assert [row.split() for row in rows] == expected
    assert len({len(row) for row in (header, *rows)}) == 1
    assert page == f"page: {trained_once / 'report.html'}"
    # A missing metric is a dash; a missing page is not mentioned.
    training.say_result(run, {"map": 0.5, "coarse/knn_top1": 1.0, "step": 28}, trained_once / "no page")
    said = capsys.readouterr().err.strip().splitlines()
    assert [line.split() for line in said[1:]] == [
        ["mAP", "k-NN"], ["trunk,", "fine", "50.0", "-"], ["trunk,", "coarse", "-", "100.0"],
    ]  # fmt: skip


def test_metrics_by_layer_and_level():
    metrics = {"map": 1.0, "genus/map": 2.0, "projector/map": 3.0, "projector/genus/recall@1": 4.0, "step": 5}
    metrics |= {"gallery/recall@1": 6.0, "projector/genus/gallery/recall@1": 7.0, "projector/within/cluster_ari": 8.0}
    assert results.by_layer_and_level(metrics, "trunk", "species") == {
        ("trunk", "species"): {"map": 1.0, "gallery/recall@1": 6.0}, ("trunk", "genus"): {"map": 2.0},
        ("projector", "species"): {"map": 3.0, "within/cluster_ari": 8.0},
        ("projector", "genus"): {"recall@1": 4.0, "gallery/recall@1": 7.0},
    }  # fmt: skip


# The loss of random guessing.


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.supervised or method.uses_queue])
def test_guessing_equals_the_losses_of_a_network_with_constant_outputs(name):
    labels = jnp.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 3])  # the last one has no positive
    same = jnp.ones((10, 4))
    queue, queue_labels = jnp.ones((20, 4)), jnp.repeat(labels, 2)
    knn, weight = losses.knn_loss_and_weight(same, labels, same, labels, own_slot=jnp.arange(10))
    computed = {
        "cross_entropy": losses.cross_entropy(jnp.zeros((10, 4)), labels, smoothing=0.1).mean(),
        "knn_loss": knn.sum() / weight.sum(),
        "info_nce": queue_losses.info_nce(same, same, queue, temperature=0.1).mean(),
        "supcon": queue_losses.supcon_queue(same, same, queue, labels, queue_labels, temperature=0.1).mean(),
        "maskcon": queue_losses.maskcon(
            same, same, queue, labels, queue_labels, temperature=0.1, soft_temperature=0.1, weight=0.5
        ).mean(),
        "spread": queue_losses.spread(same, same, queue, labels, queue_labels, temperature=0.1, weight=0.3).mean(),
        "angular": queue_losses.angular_info_nce(
            same, same, queue, labels, queue_labels, jnp.eye(4), temperature=0.1
        ).mean(),
        "own_class": queue_losses.own_class_info_nce(same, same, queue, labels, queue_labels, temperature=0.1).mean(),
    }
    guesses = objective.guessing(METHODS[name], np.asarray(labels), 4, queue_size=20, weight=0.3)
    assert guesses and guesses == pytest.approx({term: float(computed[term]) for term in guesses}, rel=1e-5)
    terms = {METHODS[name].supervised, METHODS[name].instance} - {"predict", None}
    terms |= {"cross_entropy"} if METHODS[name].cosine else set()
    assert {"knn" if term == "knn_loss" else term for term in guesses} == terms


def test_guessing_at_several_levels():
    labels, families = np.array([0, 0, 1, 1, 1, 2]), np.array([0, 0, 1], np.int32)
    levels = (objective.KnnLevel("family", 0.5, families), objective.KnnLevel("genus", 1.0, np.arange(3)))
    guesses = objective.guessing(METHODS["snca"], labels, 3, levels=levels, queue_size=20, weight=0.3)
    same = jnp.ones((6, 4))
    for name, at_level in (("family", families[labels]), ("genus", labels)):
        loss, weight = losses.knn_loss_and_weight(same, at_level, same, at_level, own_slot=jnp.arange(6))
        assert guesses.pop(f"knn_loss_{name}") == pytest.approx(float(loss.sum() / weight.sum()), rel=1e-5)
    assert not guesses


def test_a_loss_of_guessing_is_warned_about_once_after_a_hundred_steps(capsys):
    run = experiment.load(small_config("grafit_fc"))  # 14 steps per epoch
    one_class = run.records["train"].levels["coarse"]._replace(names=("all",))
    of_one = dataclasses.replace(run.records["train"], levels={"coarse": one_class})
    means = {"cross_entropy": 0.7, "loss": 5.0, "epoch": 8}
    for records, line in (
        (run.training, means | {"cross_entropy": 0.69, "step": 112}),
        (of_one, means | {"cross_entropy": 0.0, "step": 112}),
        (run.training, means | {"step": 98}),
        (run.training, means | {"step": 126}),
    ):
        console.warn_of_guessing(run.config, records, (), line, 14)
        assert capsys.readouterr().err == ""
    console.warn_of_guessing(run.config, run.training, (), means | {"step": 112}, 14)
    assert capsys.readouterr().err == (
        "warning: found cross_entropy = 0.700 after epoch 8; expected less than 0.693, that of random guessing; "
        "if it stays there, use another optimizer.learning_rate and check the labels.\n"
    )


# Progress bars.


@pytest.fixture
def clock(monkeypatch):
    """A manual clock for tqdm and `console`."""
    now = [1000.0]
    for place in ("grafit_jax.runs.console.time.time", "tqdm.std.time"):
        monkeypatch.setattr(place, lambda: now[0])
    monkeypatch.setattr(pulse, "_here", pulse.Place())
    return now


class Looks:
    """Stands in for the `ended` event: sets `pulse` to the next place at every poll, and ends after the last one."""

    def __init__(self, clock, places):
        self.clock, self.places = clock, iter(places)

    def wait(self, seconds):
        self.clock[0] += seconds
        place = next(self.places, None)
        if place is not None:
            pulse._be(place)
        return place is None


def test_in_a_log_file_training_prints_a_line_every_30_seconds_with_the_remaining_time(clock, capsys):
    bar = console.bar(total=1000, initial=10, desc="grafit", unit="img")
    for _ in range(20):
        clock[0] += 2
        bar.update(10)
    lines = [re.sub(r"\|.*\|", "|", line) for line in capsys.readouterr().err.splitlines()]
    assert lines == ["grafit:  16%| 160/1000 [00:30<02:48,  5.00img/s]"]
    bar.close()
    assert "210/1000 [00:40<" in capsys.readouterr().err


def test_in_a_log_file_a_long_activity_prints_a_line_every_30_seconds(clock, capsys):
    # Activities of 9 s each, then one of 64 s.
    step, embedding = pulse.Place(doing="taking a step"), pulse.Place(4, "embedding images", parts=99)
    places = [step._replace(step=now // 9) if now < 36 else embedding._replace(part=now) for now in range(100)]
    console._show(Looks(clock, places))
    lines = [re.sub(r"\|.*\|", "|", line) for line in capsys.readouterr().err.splitlines()]
    assert lines == ["embedding images 66/99 | [00:30<00:15]", "embedding images 96/99 | [01:00<00:02]"]


def test_on_a_terminal_a_long_activity_shows_a_bar_that_disappears(monkeypatch, clock, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console._show(Looks(clock, [pulse.Place(3, "compiling")] * 4))
    assert capsys.readouterr().err == ""
    console._show(Looks(clock, [pulse.Place(3, "compiling")] * 8))
    assert "compiling [00:05]" in capsys.readouterr().err
    console._show(Looks(clock, [pulse.Place(3, "embedding images", part=now, parts=40) for now in range(20)]))
    said = capsys.readouterr().err
    assert re.search(r"embedding images 19/40 \|.*\| \[00:19<00:2\d\]", said)
    assert re.search(r"\r +\r$", said)


def test_before_the_first_activity_nothing_is_shown_and_jax_is_not_initialised(monkeypatch, clock, capsys):
    monkeypatch.setattr(console.parallel, "is_first", lambda: pytest.fail("asked which process this is"))
    console._show(Looks(clock, [pulse.Place(beats=now % 9) for now in range(100)]))
    assert capsys.readouterr().err == ""


def test_pulse_is_polled_until_the_command_ends(monkeypatch):
    polled = []
    monkeypatch.setattr(pulse, "here", lambda: polled.append(True) or pulse.Place(5, "evaluating"))
    monkeypatch.setattr(console, "_EVERY", 0.01)
    with console.activity():
        while not polled:
            pass
    assert not any(thread.name == "activity" for thread in console.threading.enumerate())


def test_after_quiet_nothing_is_shown(monkeypatch, clock, capsys):
    monkeypatch.setattr(console, "_quiet", console.threading.Event())
    bar = console.bar(total=100, desc="grafit")
    console.quiet()
    monkeypatch.setattr(pulse, "here", lambda: pytest.fail("polled"))
    console._show(Looks(clock, [pulse.Place(3, "compiling")] * 80))
    clock[0] += 80
    bar.update(50)
    bar.close()
    assert capsys.readouterr().err == ""


# Presets for accelerators.


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ("own.py:dir=nowhere,preset=gpu,pretrained=none", r"use preset=laptop or preset=scratch of \S*/own\.py"),
        ("imagenet.py", r"\S*/imagenet\.py has no preset for CPUs"),
        ("own.py:dir=nowhere,pretrained=none", None),
    ],
)
def test_on_a_cpu_a_preset_for_accelerators_warns_before_data_are_loaded(tmp_path, cli, config, remedy):
    done = cli("train", f"--config=configs/{config}", f"--workdir={tmp_path}")
    *warned, error = done.stderr.strip().splitlines()
    assert done.returncode == 2 and error.startswith("error: ")
    found = [line for line in warned if "accelerator" in line]
    assert bool(found) == (remedy is not None), done.stderr
    expected = rf"warning: found only a CPU for model.dtype = bfloat16, .*; expected an accelerator; {remedy}\."
    assert not found if remedy is None else re.fullmatch(expected, found[0])
