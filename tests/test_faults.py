"""Faults of a run: signals, damaged checkpoints, a second run in the workdir, losses that are not finite."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grafit_jax import errors, evaluation, experiment, parallel, restore, train_step
from grafit_jax import memory as memory_lib
from grafit_jax.commands import training
from grafit_jax.errors import UserError
from grafit_jax.runs import checkpoint, locks, preemption, results, workdir
from grafit_jax.runs.checkpoint import Checkpoints
from grafit_jax.state import TrainState
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


@pytest.mark.parametrize(("every", "saved"), [(0, [14, 28]), (5, [5, 10, 14, 15, 20, 25, 28]), (14, [14, 28])])
def test_checkpoints_are_saved_every_n_steps(tmp_path, monkeypatch, every, saved, trains):
    save, steps = Checkpoints.save, []
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, step, *a, **k: steps.append(step) or save(self, step, *a, **k)
    )
    trains(small_config("baseline", **{"checkpoint.every_epochs": 1, "checkpoint.every_steps": every}), tmp_path / "r")
    assert steps == saved


# Damaged checkpoints.


def restored(path, like, **options):
    checkpoints = Checkpoints(path, keep=2, **options)
    found = checkpoints.restore_newest(*like)
    checkpoints.close()
    return found


def leaves(found):
    return [np.asarray(x) for x in jax.tree.leaves(found[:2])]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.fixture
def small(tmp_path):
    """Two checkpoints of a few arrays, which restore faster than those of a network."""
    path, rng = tmp_path / "small", np.random.default_rng(0)
    checkpoints = Checkpoints(path, keep=2)
    for step in (14, 28):
        params = {"kernel": rng.normal(size=(128, 96)).astype(np.float32), "bias": np.ones(96, np.float32)}
        state = parallel.replicate(TrainState(np.int32(step), params, {}, {}, (), np.zeros(2, np.uint32)))
        memory = memory_lib.create(rng.normal(size=(64, 16)), np.arange(64) % 2, parallel.num_all_devices())
        memory = parallel.shard(jax.tree.map(parallel.own, memory))
        checkpoints.save(step, state, memory, {"config": {}})
    checkpoints.close()
    return path, (state, memory)


def kinds(step):
    """The files of a checkpoint, without the random parts of their names."""
    return {re.sub("[0-9a-f]{32}", "*", str(p.relative_to(step))) for p in step.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_damage_to_any_file_of_a_checkpoint_is_detected_or_harmless(trained_once, small, tmp_path, capsys):
    source, like = small
    assert kinds(source / "checkpoints" / "28") == kinds(trained_once / "checkpoints" / "28")
    newest = restored(source, like, read_only=True)
    shutil.copytree(source, tmp_path / "older")
    shutil.rmtree(tmp_path / "older" / "checkpoints" / "28")
    older = restored(tmp_path / "older", like)
    assert not same(older, newest)
    files = sorted(p.relative_to(source) for p in (source / "checkpoints" / "28").rglob("*") if p.is_file())
    assert len(files) > 8
    sizes = {file: (source / file).stat().st_size for file in files}
    arrays = {max((f for f in files if item in f.parts), key=sizes.get) for item in ("state", "memory")}
    rng, detected = np.random.default_rng(0), set()
    for number, file in enumerate(files):
        for damage in ("truncate", "flip", *(["riddle"] if file in arrays else [])):
            path = tmp_path / f"{number}_{damage}"
            shutil.copytree(source, path)
            content = bytearray((path / file).read_bytes())
            if not content:
                continue
            if damage == "truncate":
                content = content[: len(content) // 2]
            else:  # one bit, or one of every 256 bytes
                for place in rng.integers(len(content), size=1 if damage == "flip" else -(-len(content) // 256)):
                    content[place] ^= 1 << int(rng.integers(8))
            (path / file).write_bytes(content)
            capsys.readouterr()
            found = restored(path, like)
            assert found is not None, file
            aside, warning = path / "checkpoints" / "damaged-28", capsys.readouterr().err
            if same(found, newest):
                assert not aside.exists()
            else:
                assert same(found, older) and aside.is_dir() and not (path / "checkpoints" / "28").exists(), file
                assert "28: found a damaged checkpoint (" in warning
                assert f"moved it to {aside}, restoring the one before it" in warning
            if aside.exists():
                detected.add((str(file), damage))
            shutil.rmtree(path)
    # Much damage is harmless: to times, or to the last tenth of an array file, an index that Orbax stores twice.
    for file in arrays:
        assert {(str(file), "truncate"), (str(file), "riddle")} <= detected
    for file in (f for f in files if f.name == "_METADATA" or str(f).endswith("record/metadata")):
        assert (str(file), "truncate") in detected


def test_a_reader_skips_a_damaged_checkpoint_and_does_not_move_it(capsys, train_run):
    (train_run / "checkpoints" / "28" / "record" / "metadata").write_text("{")
    state = restore.newest(train_run)[1]
    assert int(state.step) == 14 and "28: found a damaged checkpoint (" in capsys.readouterr().err
    assert (train_run / "checkpoints" / "28").is_dir()
    shutil.rmtree(train_run / "checkpoints" / "14")
    with pytest.raises(UserError, match="found damaged checkpoints only; train again"):
        restore.newest(train_run)


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(trained_once, train_run):
    expected = json.loads((train_run / "metrics.json").read_text())
    (train_run / "metrics.json").unlink()
    shutil.rmtree(train_run / "checkpoints" / "28" / "state")
    assert training.train(workdir.read_config(train_run), train_run) == expected
    assert (train_run / "checkpoints" / "damaged-28").is_dir()
    assert not (train_run / "checkpoints" / "damaged-14").exists()
    assert log_of(train_run) == log_of(trained_once)


def test_a_digest_depends_on_bits_and_positions_but_not_on_devices():
    x = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)

    def digest(x):
        return checkpoint.digests({"x": x})["x"]

    first = digest(jax.numpy.asarray(x))
    assert first == digest(parallel.shard(x)) == digest(parallel.replicate(x))
    assert first == digest(jax.numpy.asarray(np.concatenate([x, np.zeros((3, 5), np.float32)])))  # padding
    # By hand: bits b at position p give (m ^ m >> 12) * (2 (p f ^ p >> 7) + 1) with m = (b ^ b >> 15) * 0x2C1B3C6D.
    total, bits = [0, 0], x.view(np.uint32).ravel()
    for p, b in enumerate(map(int, bits)):
        m = (b ^ b >> 15) * 0x2C1B3C6D % 2**32
        for i, f in enumerate((0x9E3779B1, 0x85EBCA77)):
            total[i] += (m ^ m >> 12) * (2 * ((p * f) % 2**32 ^ p >> 7) + 1)
    assert first == "".join(f"{t % 2**32:08x}" for t in total)
    rng, seen = np.random.default_rng(1), {first}
    for _ in range(200):
        flipped = bits.copy()
        flipped[rng.integers(80)] ^= np.uint32(1 << int(rng.integers(32)))
        seen.add(digest(jax.numpy.asarray(flipped.view(np.float32).reshape(16, 5))))
    assert len(seen) > 190 and digest(jax.numpy.asarray(x[::-1].copy())) not in seen


def test_arrays_that_differ_from_their_digests_are_damaged():
    saved = {"state": {"a": jnp.arange(3), "b": jnp.ones(2)}}
    digests = {item: checkpoint.digests(tree) for item, tree in saved.items()}
    checkpoint._compare(saved, digests)
    for damaged, name in (({"a": jnp.arange(3), "b": jnp.array([1.0, 1.5])}, "b"), ({"b": jnp.ones(2)}, "a")):
        with pytest.raises(ValueError, match=f"state/{name} differs from its saved digest"):
            checkpoint._compare({"state": damaged}, digests)


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


def test_only_allowed_config_keys_may_change_on_resume(tmp_path, trains):
    trains(small_config("baseline", **{"train.epochs": 1}), tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    changed = small_config("baseline", **{"train.epochs": 2, "optimizer.learning_rate": 0.01})
    both = r"--allow_config_change=optimizer\.learning_rate,train\.epochs\.$"
    with pytest.raises(UserError, match=rf"learning_rate: 0\.1 -> 0\.01; train\.epochs: 1 -> 2\).*{both}"):
        trains(changed, tmp_path / "run")
    with pytest.raises(UserError, match=r"another config \(train\.epochs: 1 -> 2\)"):
        trains(changed, tmp_path / "run", allowed=["optimizer.learning_rate"])
    metrics = trains(changed, tmp_path / "run", allowed=["optimizer.learning_rate", "train.epochs"])
    assert metrics["step"] == 28
    assert workdir.read_config(tmp_path / "run").train.epochs == 2


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
