"""Several processes as real command lines over loopback: the numbers of one, over a preemption and over a death."""

import json
import signal

import jax
import numpy as np
import pods
import pytest

from grafit_jax import config as config_lib
from grafit_jax import parallel, train
from grafit_jax.checkpoint import Checkpoints
from small import ROOT, log_of


def config_of_pods():
    config = config_lib.load_file(ROOT / "configs" / "digits.py", "method=grafit")
    for argument in pods.SMALL[1:]:
        key, _, value = argument.removeprefix("--config.").partition("=")
        old = config_lib.flatten(config)[key]
        config.update_from_flattened_dict({key: type(old)(value)})
    return config


def newest(workdir):
    checkpoints = Checkpoints(workdir, read_only=True)
    found = checkpoints.read_newest("state"), checkpoints.read_newest("memory")
    checkpoints.close()
    return found


def assert_same_run(one, other):
    for a, b in zip(log_of(one), log_of(other), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=2e-5 if key[:4] != "eval" else 3e-3), key
    (state, memory), (other_state, other_memory) = newest(one), newest(other)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), state, other_state)
    rows = 899  # what is behind them is padding, as much as there are devices
    np.testing.assert_allclose(memory["embedding"][:rows], other_memory["embedding"][:rows], atol=1e-4)


def said(logs, count):
    return [(logs / f"{i}.log").read_text() for i in range(count)]


@pytest.mark.slow
def test_two_processes_make_the_run_of_one_and_go_on_after_sigterm_to_either(tmp_path):
    train.train(config_of_pods(), tmp_path / "one")
    processes = pods.start(tmp_path / "two", 2, 4, logs=tmp_path)
    pods.wait_for_step(tmp_path / "two", processes, 20)
    processes[1].send_signal(signal.SIGTERM)
    assert pods.finish(processes) == [75, 75], said(tmp_path, 2)
    stopped = [text.partition("stopped by SIGTERM after step ")[2].split(",")[0] for text in said(tmp_path, 2)]
    assert stopped[0] == stopped[1] and int(stopped[0]) in {
        int(p.name) for p in (tmp_path / "two" / "checkpoints").iterdir() if p.name.isdigit()
    }
    assert pods.finish(pods.start(tmp_path / "two", 2, 4, logs=tmp_path)) == [0, 0], said(tmp_path, 2)
    assert f"goes on after step {stopped[0]} of 54" in said(tmp_path, 2)[0]
    assert_same_run(tmp_path / "one", tmp_path / "two")
    # Only the first one says and writes.
    assert json.loads(said(tmp_path, 2)[0].splitlines()[-1]) and "{" not in said(tmp_path, 2)[1]


@pytest.mark.slow
def test_three_processes_with_an_uneven_data_set_end_with_the_one_that_dies_and_go_on(tmp_path, monkeypatch):
    processes = pods.start(tmp_path / "three", 3, 2, logs=tmp_path)
    pods.wait_for_step(tmp_path / "three", processes, 20)
    processes[2].kill()
    statuses = pods.finish(processes, seconds=60)
    assert statuses[2] == -signal.SIGKILL and 0 not in statuses
    assert pods.finish(pods.start(tmp_path / "three", 3, 2, logs=tmp_path)) == [0, 0, 0], said(tmp_path, 3)
    monkeypatch.setattr(parallel, "devices", lambda: jax.local_devices()[:6])
    train.train(config_of_pods(), tmp_path / "one")
    assert_same_run(tmp_path / "one", tmp_path / "three")
