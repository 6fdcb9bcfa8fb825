"""Multi-host runs as processes over loopback: they equal a run of one process, also after a preemption or a death."""

import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from grafit_jax import config as config_lib
from grafit_jax import config_files, experiment, restore
from grafit_jax.commands import training
from grafit_jax.data import sources
from grafit_jax.runs import workdir as workdirs
from grafit_jax.runs.checkpoint import Checkpoints
from helpers import hub, image_files, pods
from helpers.command_lines import ROOT
from helpers.devices import use_devices
from helpers.runs import assert_close, log_of


def config_of_pods():
    config = config_files.load_file(ROOT / "configs" / "digits.py", "method=grafit")
    for argument in pods.SMALL[1:]:
        key, _, value = argument.removeprefix("--config.").partition("=")
        old = config_lib.flatten(config)[key]
        config.update_from_flattened_dict({key: type(old)(value)})
    return config


def newest(workdir):
    """Returns the state and the memory's embeddings as this process restores them, on any number of devices."""
    checkpoints = Checkpoints(workdir, read_only=True)
    state, memory, _ = restore.resumed(experiment.load(workdirs.read_config(workdir), training=False), checkpoints)
    checkpoints.close()
    return state, np.concatenate(np.asarray(memory.embedding))[:899]  # followed by padding


def assert_same_run(one, other):
    for a, b in zip(log_of(one), log_of(other), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=2e-5 if key[:4] != "eval" else 3e-3), key
    (state, memory), (other_state, other_memory) = newest(one), newest(other)
    # A ReLU whose input is all but zero may pass a gradient in one run only, which changes single elements of momentum.
    a, b = (np.concatenate([*map(np.ravel, jax.tree.leaves(s.opt_state))]) for s in (state, other_state))
    assert np.mean(np.abs(a - b) > 1e-4) < 1e-3
    assert_close(state.replace(opt_state=()), other_state.replace(opt_state=()), atol=1e-4)
    np.testing.assert_allclose(memory, other_memory, atol=1e-4)


def said(logs, count):
    return [(logs / f"{i}.log").read_text() for i in range(count)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of one process with eight devices."""
    path = tmp_path_factory.mktemp("one") / "run"
    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 8)
        training.train(config_of_pods(), path)
    return path


@pytest.mark.slow
def test_two_processes_equal_one_and_resume_after_sigterm(one, tmp_path, monkeypatch, trains):
    processes = pods.start(tmp_path / "two", 2, 4, logs=tmp_path)
    pods.wait_for_step(tmp_path / "two", processes, 10)
    processes[1].send_signal(signal.SIGTERM)
    assert pods.finish(processes) == [75, 75], said(tmp_path, 2)
    stopped = [text.partition("stopped by SIGTERM after step ")[2].split(",")[0] for text in said(tmp_path, 2)]
    assert stopped[0] == stopped[1] and int(stopped[0]) in {
        int(p.name) for p in (tmp_path / "two" / "checkpoints").iterdir() if p.name.isdigit()
    }
    shutil.copytree(tmp_path / "two", tmp_path / "six")
    assert pods.finish(pods.start(tmp_path / "two", 2, 4, logs=tmp_path)) == [0, 0], said(tmp_path, 2)
    assert f"resumes after step {stopped[0]} of 27" in said(tmp_path, 2)[0]
    assert_same_run(one, tmp_path / "two")
    # Only the first process prints the metrics.
    assert json.loads(said(tmp_path, 2)[0].splitlines()[-1]) and "{" not in said(tmp_path, 2)[1]
    # The stopped run also resumes on one host with six devices.
    use_devices(monkeypatch, 6)
    trains(config_of_pods(), tmp_path / "six")
    assert_same_run(one, tmp_path / "six")


@pytest.mark.slow
def test_three_processes_stop_when_one_dies_and_resume_with_an_uneven_data_set(one, tmp_path):
    processes = pods.start(tmp_path / "three", 3, 2, logs=tmp_path)
    pods.wait_for_step(tmp_path / "three", processes, 10)
    processes[2].kill()
    assert pods.finish(processes) == [69, 69, -signal.SIGKILL], said(tmp_path, 3)
    for i, text in enumerate(said(tmp_path, 3)[:2]):
        assert re.fullmatch(
            rf"error: process {i} stops after step \d+ \([a-z ]+\): process 2 of 3 does not respond, last seen after "
            r"step \d+ \([a-z ]+\); start the same command again on all hosts to resume from the newest checkpoint\.",
            text.splitlines()[-1],
        ), text
    assert pods.finish(pods.start(tmp_path / "three", 3, 2, logs=tmp_path)) == [0, 0, 0], said(tmp_path, 3)
    assert_same_run(one, tmp_path / "three")


@pytest.mark.slow
def test_hosts_with_data_in_another_order_are_refused_before_anything_is_written(tmp_path):
    digits = sources.load(**config_of_pods().data)
    for i, order in enumerate((slice(None), slice(None, None, -1))):
        (tmp_path / str(i) / "data").mkdir(parents=True)
        for split, r in digits.items():
            arrays = {"image": r.image[order], "label": r.labels[""][order], "coarse_label": r.train_label[order]}
            np.savez(tmp_path / str(i) / "data" / f"{split}.npz", **arrays)
    folders = [tmp_path / "0", tmp_path / "1"]
    processes = pods.start(
        tmp_path / "run", 2, 1, "--config.data.source=npz:data", "--config.views.mean=(0.3,)",
        "--config.views.std=(0.3,)", logs=tmp_path, folders=folders,
    )  # fmt: skip
    assert pods.finish(processes) == [2, 2], said(tmp_path, 2)
    for text in said(tmp_path, 2):
        assert text.splitlines()[-1] == (
            "error: process 1 of 2 found other images or labels of split test, or another order of them than process "
            "0; use the same command, and the same data in the same order, on all hosts."
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_only_process_0_asks_the_hub_and_all_hosts_learn_its_answer(tmp_path, monkeypatch):
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    hub.write_cache(folders[0] / "hf" / "hub", "timm/any", {"config.json": hub.timm_config("resnet34")})
    monkeypatch.setenv("HF_HOME", "hf")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trunk = "--config.model.pretrained=hf:timm/any"
    processes = pods.start(tmp_path / "run", 2, 1, trunk, logs=tmp_path, folders=folders)
    assert pods.finish(processes) == [2, 2], said(tmp_path, 2)
    for text in said(tmp_path, 2):
        last = text.splitlines()[-1]
        assert last.startswith("error: model.pretrained = hf:timm/any: found trunk resnet34; expected resnet8, as in")


def test_a_frozen_process_is_detected(tmp_path, long):
    processes = pods.start(tmp_path / "two", 2, 2, "--config.train.epochs=1000", logs=tmp_path)
    pods.wait_for_step(tmp_path / "two", processes, 5)
    processes[1].send_signal(signal.SIGSTOP)
    assert pods.finish(processes[:1]) == [69]
    processes[1].kill()
    assert "process 1 of 2 does not respond, last seen after step " in said(tmp_path, 2)[0].splitlines()[-1]


def test_a_process_that_waits_for_a_file_forever_is_detected(tmp_path, long):
    stuck_seconds = 60 if long else 20  # longer than a start or an evaluation
    data = tmp_path / "data"
    written = image_files.write_tree(data, {"train/x": 48, "train/y": 48, "test/x": 6, "test/y": 6}, height=8, width=8)
    of_files = [
        f"--config.data.source=folder:{data}", "--config.data.stream=True", "--config.data.image_size=8",
        "--config.views.mean=(0.4,0.4,0.4)", "--config.views.std=(0.3,0.3,0.3)", "--config.eval.recall_at=(1,)",
        "--config.train.epochs=1000", "--config.train.batch_size=48", f"--stuck_seconds={stuck_seconds}",
    ]  # fmt: skip
    processes = pods.start(tmp_path / "two", 2, 2, *of_files, logs=tmp_path)
    pods.wait_for_step(tmp_path / "two", processes, 5)
    os.mkfifo(tmp_path / "fifo")  # opening it never returns, as on a network disk that has disappeared
    os.replace(tmp_path / "fifo", next(iter(written)))
    assert pods.finish(processes) == [69, 69]
    places = [re.search(rf"no progress for {stuck_seconds} s: process 0 is (.*); process 1 is (.*?); start", text)
              for text in said(tmp_path, 2)]  # fmt: skip
    found = next(place for place in places if place)
    assert "(reading a batch)" in found[1] + found[2]
    # The stack shows which function is waiting.
    assert any(place and "decode" in text for place, text in zip(places, said(tmp_path, 2), strict=True))
