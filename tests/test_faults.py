"""Faults of a run: signals, a second run in the workdir, losses that are not finite."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from grafit_jax import errors, evaluation, experiment, restore, train_step
from grafit_jax.errors import UserError
from grafit_jax.runs import checkpoint, locks, preemption, results, workdir
from grafit_jax.runs.checkpoint import Checkpoints
from helpers.command_lines import ROOT, a_moment, command, shell_environment
from helpers.runs import assert_close, before_calls, log_of, small_config

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


def stopping_after(monkeypatch, calls, number=signal.SIGTERM):
    """Sends a signal during the calls of these numbers, counted over all runs."""
    before_calls(monkeypatch, dict.fromkeys(calls, lambda: os.kill(os.getpid(), number)))


# Signals.


@pytest.mark.parametrize(("method", "number"), [("grafit", signal.SIGINT), ("selfcon", signal.SIGTERM)])
def test_a_signal_saves_the_run_which_resumes_bit_for_bit(tmp_path, monkeypatch, method, number, trains):
    config = small_config(method, **{"queue.size": 128, "checkpoint.every_epochs": 2})
    expected = trains(config, tmp_path / "whole")
    before = signal.getsignal(number)
    # An epoch has 14 steps: stops within the first, within the second, and one step later.
    stopping_after(monkeypatch, {5, 16, 17}, number)
    for step in (5, 16, 17):
        message = rf"stopped by {NAMES[number]} after step {step}, which is saved: start the same"
        with pytest.raises(preemption.Preempted, match=message):
            trains(config, tmp_path / "stopped")
        assert not (tmp_path / "stopped" / "metrics.json").exists()
    assert trains(config, tmp_path / "stopped") == expected
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")
    assert signal.getsignal(number) is before


def test_a_run_stopped_at_the_end_of_an_epoch_logs_that_epoch(tmp_path, monkeypatch, trains):
    config = small_config("baseline", **{"checkpoint.every_epochs": 9})
    expected = trains(config, tmp_path / "whole")
    stopping_after(monkeypatch, {14})
    with pytest.raises(preemption.Preempted, match="after step 14"):
        trains(config, tmp_path / "stopped")
    assert [line["step"] for line in log_of(tmp_path / "stopped")] == [14]
    assert trains(config, tmp_path / "stopped") == expected
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")


def test_calls_of_several_steps_equal_calls_of_single_steps(tmp_path, monkeypatch, trains):
    config = small_config("baseline", **{"checkpoint.every_epochs": 1})
    trains(config, tmp_path / "single")
    config.train.steps_per_call = 5  # an epoch of 14 steps has calls of 5, 5 and 4
    stopping_after(monkeypatch, {5})  # in the middle of the second epoch
    with pytest.raises(preemption.Preempted, match="after step 24, which is saved"):
        trains(config, tmp_path / "scanned")
    trains(config, tmp_path / "scanned")
    for one, other in zip(log_of(tmp_path / "single"), log_of(tmp_path / "scanned"), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("method", "batch", "saved"),
    [
        ("grafit", 2, None),  # in the pass that fills the memory
        ("baseline", 2, 14),  # in the evaluation after the first of two epochs
        ("baseline", 8, 28),  # in the last evaluation
    ],
)
def test_a_signal_interrupts_a_pass_over_images_and_nothing_is_lost(
    tmp_path, monkeypatch, method, batch, saved, trains
):
    config = small_config(method, **{"eval.every_epochs": 1, "checkpoint.every_epochs": 9, "eval.batch_size": 450})
    expected = trains(config, tmp_path / "whole")
    in_order, batches = evaluation.in_order, itertools.count(1)

    def interrupted(images, size):
        for images_of_batch in in_order(images, size):
            if next(batches) == batch:
                os.kill(os.getpid(), signal.SIGINT)
            yield images_of_batch

    monkeypatch.setattr(evaluation, "in_order", interrupted)
    with pytest.raises(preemption.Preempted, match="by Ctrl-C while embedding images: start the same command again"):
        trains(config, tmp_path / "stopped")
    assert Checkpoints(tmp_path / "stopped", read_only=True).latest_step() == saved
    assert trains(config, tmp_path / "stopped") == expected
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")


def test_a_signal_while_the_result_is_written_stops_the_run_before_its_page(tmp_path, monkeypatch, trains):
    from grafit_jax import train

    write_result = train._write_result

    def interrupted(*arguments):
        write_result(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    config = small_config("baseline", **{"train.epochs": 1})
    monkeypatch.setattr(train, "_write_result", interrupted)
    with pytest.raises(preemption.Preempted, match="by SIGTERM"):
        trains(config, tmp_path / "run")
    assert trains(config, tmp_path / "run") == json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_a_checkpoint_whose_restore_is_interrupted_does_not_count_as_damaged(train_run, monkeypatch, trains):
    digests = checkpoint.digests

    def interrupted(tree):
        monkeypatch.setattr(checkpoint, "digests", digests)
        os.kill(os.getpid(), signal.SIGINT)
        return digests(tree)

    (train_run / "metrics.json").unlink()
    monkeypatch.setattr(checkpoint, "digests", interrupted)
    with pytest.raises(preemption.Preempted, match="by Ctrl-C while restoring"):
        trains(workdir.read_config(train_run), train_run)
    assert {path.name for path in (train_run / "checkpoints").iterdir()} == {"14", "28"}


def test_the_best_checkpoint_is_kept_if_its_evaluation_came_after_a_stop(tmp_path, monkeypatch, trains):
    config = small_config("baseline", **{"train.epochs": 3, "eval.every_epochs": 1, "checkpoint.keep": 1})
    evaluate, quality = experiment.evaluate, {14: 0.9, 28: 0.2, 42: 0.1}
    monkeypatch.setattr(experiment, "evaluate", lambda *run: evaluate(*run) | {"map": quality[int(run[1].step)]})
    stopping_after(monkeypatch, {14})
    with pytest.raises(preemption.Preempted, match="after step 14, which is saved"):
        trains(config, tmp_path / "run")
    trains(config, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"14", "42"}


def test_a_complete_run_without_its_last_checkpoint_does_not_train_for_more_epochs(train_run, trains):
    config = workdir.read_config(train_run)
    config.train.epochs = 3
    shutil.rmtree(train_run / "checkpoints" / "28")
    log = (train_run / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="found step 14 as its newest checkpoint; expected step 28, the last of the"):
        trains(config, train_run, allowed=["train.epochs"])
    assert (train_run / "metrics.jsonl").read_text() == log


def test_a_complete_run_trains_for_more_epochs_and_keeps_its_old_result_until_then(train_run, monkeypatch, trains):
    config, before = workdir.read_config(train_run), (train_run / "config.json").read_text()
    config.train.epochs = 3
    with pytest.raises(UserError, match=r"train\.epochs: 2 -> 3.*--allow_config_change=train\.epochs"):
        trains(config, train_run)
    stopping_after(monkeypatch, {3})
    with pytest.raises(preemption.Preempted, match="after step 31, which is saved"):
        trains(config, train_run, allowed=["train.epochs"])
    old = results.collect(train_run)
    assert (old["metrics"]["step"], old["config"]["train.epochs"]) == (28, 2)
    assert trains(config, train_run, allowed=["train.epochs"])["step"] == 42
    new = results.collect(train_run)
    assert (new["metrics"]["step"], new["config"]["train.epochs"]) == (42, 3)
    assert [line["step"] for line in log_of(train_run)] == [14, 14, 28, 28, 42, 42]
    # As after a kill before config.json is written, which is last.
    (train_run / "config.json").write_text(before)
    assert trains(config, train_run, allowed=["train.epochs"])["step"] == 42
    assert results.collect(train_run) == new
    config.train.epochs = 1
    with pytest.raises(UserError, match=r"found train\.epochs = 1; expected at least 3, since \S+ is complete after"):
        trains(config, train_run, allowed=["train.epochs"])
    assert results.collect(train_run) == new


def test_in_a_multi_host_run_every_step_is_queried_for_preemption(monkeypatch):
    """JAX's service answers True for one step only, which may lie within a call or before the resumed step."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for stop_at, calls, expected in (
        (971, (970, 1067, 1164), [False, True, False]),
        (1, (501, 502), [True, False]),
        (503, (501, 502, 503), [False, False, True]),
    ):
        asked = []
        monkeypatch.setattr(
            preemption.multihost_utils,
            "reached_preemption_sync_point",
            lambda step, asked=asked, stop_at=stop_at: asked.append(step) or step == stop_at,
        )
        with preemption.watch() as stop:
            assert [stop(step) for step in calls] == expected
        assert asked == list(range(1, calls[-1] + 1))  # all processes must query the same steps


@pytest.mark.slow
def test_a_command_line_exits_with_status_75_on_sigterm(tmp_path):
    arguments = (
        "train", "--config=configs/digits.py:method=baseline", f"--workdir={tmp_path}/run", "--config.train.epochs=400",
        "--config.model.trunk=resnet8", "--config.model.stem=patch2", "--config.checkpoint.every_steps=2",
    )  # fmt: skip
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command(*arguments), stdout=said, stderr=said, env=shell_environment())
    while process.poll() is None and not (tmp_path / "run" / "checkpoints" / "2").exists():
        a_moment(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    last = (tmp_path / "said").read_text().splitlines()[-1]
    assert last.startswith("stopped by SIGTERM after step ") and last.endswith("start the same command again to resume")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_and_its_handler_restored(number):
    before = signal.getsignal(number)
    with preemption.watch() as stop:
        assert not stop(1)
        os.kill(os.getpid(), number)
        assert stop(2) and stop(3)
        with pytest.raises(preemption.Preempted, match=f"stopped by {NAMES[number]} while "), stop.at_once():
            raise AssertionError("began in spite of the signal")
    assert signal.getsignal(number) is before


def test_a_signal_interrupts_reading_a_file_without_an_error_about_that_file(tmp_path):
    reading = errors.reading(tmp_path / "whole.npz", "use another file")
    with preemption.watch() as stop, pytest.raises(preemption.Preempted), stop.at_once(), reading:
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("not interrupted")


def test_a_signal_swallowed_within_a_context_is_raised_at_its_end():
    swallowed = contextlib.suppress(preemption.Preempted)  # as Python does in a finaliser
    with preemption.watch() as stop, pytest.raises(preemption.Preempted), stop.at_once(), swallowed:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_a_second_ctrl_c_exits_at_once(tmp_path):
    code = (
        "import time\nfrom grafit_jax import pulse\nfrom grafit_jax.runs import preemption\n"
        "pulse.at(3, 'taking a step')\n"
        "with preemption.watch():\n    print('ready', flush=True)\n    time.sleep(600)\n"
    )
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": shell_environment()}
    with subprocess.Popen([sys.executable, "-c", code], **pipe) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        said = [process.stderr.readline() for _ in range(2)]
        assert said[1] == "Ctrl-C: still taking a step, then saving; press Ctrl-C again to exit at once\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "exited on a second Ctrl-C" in process.stderr.read()


@pytest.mark.parametrize(("every", "saved"), [(5, [5, 10, 14, 15, 20, 25, 28]), (14, [14, 28])])
def test_checkpoints_are_saved_every_n_steps(tmp_path, monkeypatch, every, saved, trains):
    save, steps = Checkpoints.save, []
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, step, *a, **k: steps.append(step) or save(self, step, *a, **k)
    )
    trains(small_config("baseline", **{"checkpoint.every_epochs": 1, "checkpoint.every_steps": every}), tmp_path / "r")
    assert steps == saved


# Locks and other configs.


def test_a_lock_is_held_until_its_run_ends(tmp_path):
    run = tmp_path / "run"
    for _ in range(2):
        with workdir.lock(run):
            assert locks.is_held(run / "lock")
            with pytest.raises(UserError, match=rf"found it in use by process {os.getpid()} on "), workdir.lock(run):
                pass
        assert not locks.is_held(run / "lock")


def test_a_workdir_in_use_is_refused_until_its_run_ends(tmp_path, trains):
    config = small_config("baseline", **{"train.epochs": 1})
    with (
        workdir.lock(tmp_path / "run"),
        pytest.raises(UserError, match=rf"run: found it in use by process {os.getpid()} on \S+; use another --workdir"),
    ):
        trains(config, tmp_path / "run")
    # The files of a dead run are not a lock.
    assert (tmp_path / "run" / "lock").exists()
    assert (tmp_path / "run" / ".holder").read_text().startswith(f"process {os.getpid()} on ")
    trains(config, tmp_path / "run")


_WITHOUT_POSIX = """
import importlib, os, pkgutil, sys
sys.modules.update(dict.fromkeys(("fcntl", "resource", "termios", "pwd", "grp")))
del os.sysconf, os.fork
import grafit_jax
from absl import flags
names = [m.name for m in pkgutil.walk_packages(grafit_jax.__path__, "grafit_jax.")]
for name in names:
    importlib.import_module(name)
    for flag in [*flags.FLAGS.flags_by_module_dict().get(name, ())]:  # each command is a script with flags of its own
        delattr(flags.FLAGS, flag.name)
from grafit_jax.data import files
print(len(names), files._memory())
"""


@pytest.mark.slow
def test_the_package_imports_on_a_system_without_posix_modules():
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_POSIX], capture_output=True, text=True, cwd=ROOT, env=shell_environment()
    )
    assert done.returncode == 0, done.stderr
    number, memory = done.stdout.split()
    assert int(number) > 50 and memory == "inf"


# Losses that are not finite.


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path):
    config = small_config(**{"train.skip_not_finite": True, "model.sync_batch_norm": False})
    run = experiment.load(config)
    step = jax.jit(train_step.make_train_step(run, axis_name=None))
    state, memory = restore.initial(run)
    memory = jax.tree.map(lambda x: x[0], memory)
    rng = jax.random.key(0)
    batch = {
        "image": run.records["train"].image[:16],
        "label": run.records["train"].train_label[:16],
        "id": np.arange(16),
    }
    after, updated, terms = step(state, memory, batch, rng)
    assert float(terms["skipped"][0]) == 0 and not np.array_equal(updated.embedding, memory.embedding)
    # The option does not change a finite step.
    with config.unlocked():
        config.train.skip_not_finite = False
    plain = jax.jit(train_step.make_train_step(experiment.load(config), axis_name=None))(state, memory, batch, rng)
    assert_close((after, updated), plain[:2], atol=1e-6)
    # With infinite parameters the loss is not finite: only the step and the schedules' count change.
    broken = state.replace(params=jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(np.inf), state.params))
    after, updated, terms = step(broken, memory, batch, rng)
    count = optax.tree.get(after.opt_state, "count")
    same_count = optax.tree.set(broken.opt_state, count=count)
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=broken.step), broken.replace(opt_state=same_count))
    jax.tree.map(np.testing.assert_array_equal, updated, memory)
    assert int(after.step) == int(count) == 1 and float(terms["skipped"][0]) == 1
    assert all(float(x) == 0 for name, pair in terms.items() if name != "skipped" for x in pair)
