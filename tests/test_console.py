"""What a command says on stderr: what a run starts, what takes long, how long it will take, and its result."""

import dataclasses
import json
import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax import experiment, losses, objective, parallel, pulse, restore
from grafit_jax.commands import train
from grafit_jax.methods import METHODS
from grafit_jax.retrieval.clustering import Clusters
from grafit_jax.runs import console, progress, results
from grafit_jax.runs.clusterfit import relabel
from helpers.runs import small_config


def test_a_start_says_what_it_starts(capsys):
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


def test_a_start_names_the_clusters_that_are_trained_on_and_the_size_that_is_seen(capsys):
    run = experiment.load(small_config("baseline", **{"views.size": 16}))
    clusters = Clusters(np.zeros((7, 4), np.float32), np.arange(899) % 7, 0.0, 1)
    console.start(run.config, relabel(run.records["train"], clusters), run.records["test"], 1234, 28)
    said = capsys.readouterr().err
    assert "of 8 x 8 pixels, seen at 16 x 16\n" in said
    assert "  classes  2 coarse, 10 fine, 7 cluster (trained on)\n" in said


def test_the_result_is_a_small_table_in_percent_and_names_the_page(trained_once, capsys):
    run, _ = restore.newest(trained_once)
    metrics = json.loads((trained_once / "metrics.json").read_text())
    train.say_result(run, metrics, trained_once / "report.html")
    title, header, *rows, page = capsys.readouterr().err.strip().splitlines()
    assert title == "grafit after step 28, in percent:" and header.split() == ["mAP", "R@1", "k-NN"]
    expected = []
    for layer, prefix in (("trunk", ""), ("projector", "projector/")):
        for level, of_level in (("fine", ""), ("coarse", "coarse/")):
            values = [metrics[f"{prefix}{of_level}{key}"] for key in ("map", "recall@1", "knn_top1")]
            expected.append([f"{layer},", level, *(f"{100 * v:.1f}" for v in values)])
    assert [row.split() for row in rows] == expected
    assert len({len(row) for row in (header, *rows)}) == 1
    assert page == f"page: {trained_once / 'report.html'}"
    # What was not evaluated is a dash, and no page is none.
    train.say_result(run, {"map": 0.5, "coarse/knn_top1": 1.0, "step": 28}, trained_once / "no page")
    said = capsys.readouterr().err.strip().splitlines()
    assert [line.split() for line in said[1:]] == [
        ["mAP", "k-NN"], ["trunk,", "fine", "50.0", "-"], ["trunk,", "coarse", "-", "100.0"],
    ]  # fmt: skip


def test_metrics_by_layer_and_level():
    metrics = {"map": 1.0, "genus/map": 2.0, "projector/map": 3.0, "projector/genus/recall@1": 4.0, "step": 5}
    assert results.by_layer_and_level(metrics, "trunk", "species") == {
        ("trunk", "species"): {"map": 1.0}, ("trunk", "genus"): {"map": 2.0},
        ("projector", "species"): {"map": 3.0}, ("projector", "genus"): {"recall@1": 4.0},
    }  # fmt: skip


# Losses of guessing.


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.supervised or method.uses_queue])
def test_guessing_is_what_the_losses_are_of_a_network_that_tells_nothing_apart(name):
    labels = jnp.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 3])  # the last one has no positive
    same = jnp.ones((10, 4))
    queue, queue_labels = jnp.ones((6, 4)), jnp.array([0, 1, 1, 2, 2, 2])
    knn, weight = losses.knn_loss_and_weight(same, labels, same, labels, own_slot=jnp.arange(10))
    computed = {
        "cross_entropy": losses.cross_entropy(jnp.zeros((10, 4)), labels, smoothing=0.1).mean(),
        "knn_loss": knn.sum() / weight.sum(),
        "info_nce": losses.info_nce(same, same, queue, temperature=0.1).mean(),
        "supcon": losses.supcon_queue(same, same, queue, labels, queue_labels, temperature=0.1).mean(),
        "maskcon": losses.maskcon(
            same, same, queue, labels, queue_labels, temperature=0.1, soft_temperature=0.1, weight=0.5
        ).mean(),
    }
    guesses = objective.guessing(METHODS[name], np.asarray(labels), 4, 6)
    assert guesses and guesses == pytest.approx({term: float(computed[term]) for term in guesses}, rel=1e-5)
    terms = {METHODS[name].supervised, METHODS[name].instance} - {"predict", None}
    assert {"knn" if term == "knn_loss" else term for term in guesses} == terms


def test_a_loss_of_guessing_is_warned_of_once_a_hundred_steps_were_taken(capsys):
    run = experiment.load(small_config("grafit_fc"))  # of 14 steps an epoch
    one_class = run.records["train"].levels["coarse"]._replace(names=("all",))
    of_one = dataclasses.replace(run.records["train"], levels={"coarse": one_class})
    means = {"cross_entropy": 0.7, "loss": 5.0, "epoch": 8}
    for records, line in (
        (run.training, means | {"cross_entropy": 0.69, "step": 112}),
        (of_one, means | {"cross_entropy": 0.0, "step": 112}),
        (run.training, means | {"step": 98}),
        (run.training, means | {"step": 126}),
    ):
        console.warn_of_guessing(run.method, records, 0, line, 14)
        assert capsys.readouterr().err == ""
    console.warn_of_guessing(run.method, run.training, 0, means | {"step": 112}, 14)
    assert capsys.readouterr().err == (
        "warning: found cross_entropy = 0.700 after epoch 8, and guessing gives 0.693: nothing is learned yet; "
        "if it stays so, use another optimizer.learning_rate, and check the labels.\n"
    )


# How long it will take.


def test_an_estimate_is_made_once_from_steps_that_are_done(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    estimate = progress.Estimate(total=1000)

    def call(step, at, *, compiled=False):
        now[0] = at
        estimate(step, jnp.ones(()), compiled=compiled)

    call(10, 150.0, compiled=True)
    call(11, 152.0)
    now[0] = 154.0
    estimate.pause(12)
    call(14, 300.0)  # after an evaluation
    call(15, 302.0)
    call(16, 350.0, compiled=True)  # a call of another length
    call(18, 355.9)
    assert capsys.readouterr().err == ""
    call(19, 356.0)  # 2 steps in 4 s and 3 in 6 s; 981 to go
    call(20, 358.0)
    assert capsys.readouterr().err == "about 33 min to go, at 2 s a step, evaluations not counted\n"


@pytest.mark.parametrize(
    ("seconds", "said"), [(20, "1 min"), (119, "2 min"), (5900, "98 min"), (6600, "1.8 h"), (400_000, "4.6 days")]
)
def test_durations_have_a_unit_for_people(seconds, said):
    assert progress._duration(seconds) == said


# What takes long.


def test_in_a_log_file_what_takes_long_is_a_line_now_and_then(capsys):
    shown = progress._Activity()
    for now in range(100):  # 9 s each, and then one thing for 64 s
        step, embedding = pulse.Place(now // 9, "taking a step"), pulse.Place(4, "embedding images", part=now, parts=99)
        shown.look(step if now < 36 else embedding, now)
    assert capsys.readouterr().err == (
        "embedding images, part 66 of 99, for 30 s\nembedding images, part 96 of 99, for 60 s\n"
    )


def test_on_a_terminal_what_takes_long_is_a_bar_that_goes_away(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown, began = progress._Activity(), time.time() - 100
    for now in range(4):
        shown.look(pulse.Place(3, "compiling"), began + now)
    assert capsys.readouterr().err == ""
    for now in range(4, 8):
        shown.look(pulse.Place(3, "compiling"), began + now)
    assert "compiling [" in capsys.readouterr().err
    for now in range(8, 20):
        shown.look(pulse.Place(3, "embedding images", part=now, parts=40), began + now)
    assert re.search(r"embedding images 19/40 \|.*\| \[\d\d:\d\d<", capsys.readouterr().err)
    shown.close()
    assert re.fullmatch(r"\r +\r", capsys.readouterr().err)


def test_before_anything_is_done_nothing_is_shown_and_jax_is_not_started(monkeypatch, capsys):
    monkeypatch.setattr(progress.parallel, "is_first", lambda: pytest.fail("asked which process this is"))
    shown = progress._Activity()
    for now in range(100):
        shown.look(pulse.Place(beats=now % 9), now)
    assert capsys.readouterr().err == ""


def test_what_a_command_does_is_looked_at_until_it_ends(monkeypatch, capsys):
    looked = []
    monkeypatch.setattr(progress._Activity, "look", lambda self, place, now: looked.append(place))
    monkeypatch.setattr(progress, "_EVERY", 0.01)
    pulse.at(5, "evaluating")
    with progress.activity():
        while not looked:
            pass
    assert looked[0] == pulse.Place(5, "evaluating")
    assert not any(thread.name == "activity" for thread in progress.threading.enumerate())


def test_after_the_last_words_of_a_process_nothing_is_shown(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_quiet", progress.threading.Event())
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    monkeypatch.setattr(progress._Activity, "look", lambda self, place, now: pytest.fail("looked"))
    bar = progress.bar(100, 0, "grafit")
    progress.quiet()
    capsys.readouterr()
    progress._show(progress.threading.Event())
    bar.update(50)
    bar.close()
    assert capsys.readouterr().err == ""


# A preset for an accelerator.


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ("own.py:dir=nowhere", r"use preset=cpu of \S*/own\.py"),
        ("imagenet.py", r"\S*/imagenet\.py has no preset for a CPU"),
        ("own.py:dir=nowhere,preset=cpu", None),
    ],
)
def test_a_preset_for_accelerators_is_warned_of_before_data_are_loaded(tmp_path, cli, config, remedy):
    done = cli("train", f"--config=configs/{config}", f"--workdir={tmp_path}")
    *warned, error = done.stderr.strip().splitlines()
    assert done.returncode == 2 and error.startswith("error: ")
    found = [line for line in warned if "accelerators" in line]
    assert bool(found) == (remedy is not None), done.stderr
    expected = rf"warning: found only a CPU, and a config for accelerators .*, which may take days: {remedy}\."
    assert not found if remedy is None else re.fullmatch(expected, found[0])
