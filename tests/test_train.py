"""The training loop end to end: files, a single compilation, early errors."""

import json
import re

import jax
import numpy as np
import pytest

from grafit_jax import config as config_lib
from grafit_jax import experiment, fit, objective, parallel, restore, train_step
from grafit_jax import memory as memory_lib
from grafit_jax.commands import training
from grafit_jax.data import pipeline
from grafit_jax.errors import UserError
from grafit_jax.memory import Memory
from grafit_jax.runs import workdir
from grafit_jax.runs.checkpoint import Checkpoints
from helpers.devices import use_devices
from helpers.runs import before_calls, interrupted_in_the_second_epoch, small_config


def newest(path):
    checkpoints = Checkpoints(path, read_only=True)
    step = checkpoints.latest_step()
    tree = jax.tree.map(np.asarray, dict(checkpoints._manager.restore(step)))
    checkpoints.close()
    return step, tree


def test_a_run_writes_config_log_checkpoints_page_and_result(trained_once, cli):
    metrics = json.loads((trained_once / "metrics.json").read_text())
    expected = {f"{level}{name}" for level in ("", "coarse/") for name in (
        *(f"{side}recall@{k}" for side in ("", "gallery/") for k in (1, 2, 5, 10)),
        "map", "knn_top1", "queries_without_positive")}  # fmt: skip
    assert set(metrics) == expected | {f"projector/{name}" for name in expected} | {"step"}
    assert all(0 <= metrics[name] <= 1 for name in expected if "queries" not in name)
    assert metrics["step"] == 2 * 14
    log = [json.loads(line) for line in (trained_once / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [14, 14, 28, 28]
    assert log[-1] == {f"eval/{k}": v for k, v in metrics.items() if k != "step"} | {"step": 28}
    assert log[0]["without_positive"] == 0 and log[0]["loss"] > log[2]["loss"]
    facts = json.loads((trained_once / "run.json").read_text())
    assert facts["train_images"] == 899 and facts["test_images"] == 898 and facts["views_per_image"] == 2
    assert list((trained_once / "tensorboard").iterdir()) and (trained_once / "report.html").is_file()
    expected = small_config(**{"checkpoint.every_epochs": 1, "eval.every_epochs": 1})
    assert config_lib.differences(workdir.read_config(trained_once), expected) == []
    assert {int(p.name) for p in (trained_once / "checkpoints").iterdir() if p.name.isdigit()} == {14, 28}
    # Evaluation prints metrics.json as one line, and does not change the workdir.
    times = {path: path.stat().st_mtime_ns for path in trained_once.rglob("*")}
    done = cli("evaluate", f"--workdir={trained_once}")
    assert done.stdout == (trained_once / "metrics.json").read_text(), done.stderr
    assert times == {path: path.stat().st_mtime_ns for path in trained_once.rglob("*")}


def test_a_run_compiles_its_step_once_and_keeps_the_newest_checkpoints_and_the_best(tmp_path, monkeypatch, trains):
    # Evaluations and saves in between must not compile anything again.
    config = small_config(**{"eval.every_epochs": 1, "checkpoint.every_epochs": 1, "train.epochs": 3})
    compiled, before = [], {}

    def listener(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    before_calls(monkeypatch, {n: lambda n=n: before.update({n: len(compiled)}) for n in (1, 2, 14, 15, 42)})
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        metrics = trains(config, tmp_path / "run")
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    # Only the first call of the step and the first evaluation (before call 15) compile.
    assert before[1] < before[2] == before[14] and before[15] == before[42] == len(compiled)

    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [14, 14, 28, 28, 42, 42]
    # The keep = 2 newest, and the best by map.
    kept = {int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()}
    best = max((line for line in log if "eval/map" in line), key=lambda line: line["eval/map"])["step"]
    assert kept == {28, 42, best}


def test_a_frozen_run_is_the_initial_weights_with_their_metrics(tmp_path, monkeypatch, capsys):
    config = small_config("frozen", **{"train.batch_size": 5000})  # more than there are images
    monkeypatch.setattr(fit, "_limit", lambda: 1)  # no step needs memory
    monkeypatch.setattr(train_step, "pmap_steps", None)  # no step is compiled
    found = training.train(config, tmp_path / "run")
    run = experiment.load(config)
    initial = restore.initial_state(run)
    assert found == experiment.evaluate(run, initial) and found["step"] == 0
    assert not any(key.startswith("projector/") for key in found)
    assert "frozen on digits: nothing to train" in capsys.readouterr().err
    step, saved = newest(tmp_path / "run")
    assert step == 0
    np.testing.assert_array_equal(
        saved["state"]["params"]["trunk"]["Conv_0"]["kernel"], initial.params["trunk"]["Conv_0"]["kernel"]
    )
    assert training.train(config, tmp_path / "run") == found
    assert "complete; nothing to train" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_steps(tmp_path, trains):
    config = small_config(**{"optimizer.learning_rate": 1e30, "checkpoint.every_epochs": 1})
    with pytest.raises(
        UserError,
        match=r"not finite between steps 0 and 14, which were not saved; the newest checkpoint is of step 0; lower",
    ):
        trains(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]


def test_a_state_with_a_loss_that_is_not_finite_is_not_saved_within_an_epoch(tmp_path, trains):
    config = small_config("baseline", **{"optimizer.learning_rate": 1e30, "checkpoint.every_steps": 1})
    with pytest.raises(UserError, match="not finite between steps") as error:
        trains(config, tmp_path / "run")
    first, last, kept = map(int, re.findall(r"\d+", str(error.value))[:3])
    newest_step, tree = newest(tmp_path / "run")
    assert 0 < first == kept == newest_step and last < 14
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(tree["state"]["params"]))


def test_a_run_whose_steps_are_all_skipped_stops(tmp_path, trains):
    config = small_config("baseline", **{"optimizer.learning_rate": 1e30, "train.skip_not_finite": True})
    message = "found every step from 14 to 28 skipped, since its loss or gradient is not finite; lower"
    with pytest.raises(UserError, match=message):
        trains(config, tmp_path / "run")
    assert [line["step"] for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl").open())] == [14]


def test_an_evaluation_that_fails_loses_no_epoch(tmp_path, monkeypatch, trains):
    config = small_config("baseline", **{"checkpoint.every_epochs": 1, "train.epochs": 3})
    evaluate = experiment.evaluate
    interrupted_in_the_second_epoch(config, tmp_path / "run")
    assert newest(tmp_path / "run")[0] == 14

    def out_of_memory(*args):
        raise MemoryError

    monkeypatch.setattr(experiment, "evaluate", out_of_memory)
    with pytest.raises(MemoryError):
        trains(config, tmp_path / "run")
    assert newest(tmp_path / "run")[0] == 42 and not (tmp_path / "run" / "metrics.json").exists()

    # Nothing is left to train: the run is evaluated and complete, and running it again changes no file.
    monkeypatch.setattr(experiment, "evaluate", evaluate)
    metrics = trains(config, tmp_path / "run")
    assert metrics["step"] == 42 and metrics == evaluate(*restore.newest(tmp_path / "run"))
    (tmp_path / "run" / "run.json").write_text("as it was")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert trains(config, tmp_path / "run") == metrics
    assert (tmp_path / "run" / "run.json").read_text() == "as it was"


def test_the_best_checkpoint_is_kept_after_a_resume(tmp_path):
    tree = parallel.replicate(Memory(np.zeros((3, 1), np.float32), np.zeros(3, np.int32)))
    evaluations = {5: {"map": 0.95}}  # without a checkpoint
    for steps in ([(10, 0.9), (20, 0.1)], [(30, 0.2), (40, 0.3), (50, 0.25)]):
        checkpoints = Checkpoints(tmp_path, keep=2)
        checkpoints.evaluations = evaluations
        for step, value in steps:
            evaluations[step] = {"map": value}
            checkpoints.save(step, tree, None)
            checkpoints.wait()
        checkpoints.close()
    assert {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()} == {10, 40, 50}


def test_a_run_on_eight_devices_is_evaluated_on_one_and_on_three(tmp_path, monkeypatch, trains, eight_devices):
    config = small_config(**{"checkpoint.every_epochs": 1, "eval.layers": ("trunk",)})
    eight = trains(config, tmp_path / "run")
    use_devices(monkeypatch, 1)
    one = experiment.evaluate(*restore.newest(tmp_path / "run"))
    assert one.keys() == eight.keys()
    for name, value in eight.items():
        assert one[name] == pytest.approx(value, abs=2e-3), name
    # The memory of 8 devices, with 5 rows of padding, equals that of 3 devices, with 1 row of padding.
    on_eight = newest(tmp_path / "run")[1]["memory"]["embedding"]
    assert on_eight.shape == (904, 16) and not on_eight[899:].any()
    use_devices(monkeypatch, 3)
    run = experiment.load(config, training=False)
    state = restore.initial_state(run, placeholder=True)
    like = restore.initial_memory(run, state, placeholder=True)
    checkpoints = Checkpoints(tmp_path / "run", read_only=True)
    _, memory, record = checkpoints.restore_newest(state, like)
    checkpoints.close()
    assert memory.embedding.shape == (3, 300, 16) and memory.embedding.sharding.device_set == {*jax.devices()[:3]}
    np.testing.assert_array_equal(np.asarray(memory.embedding).reshape(900, 16)[:899], on_eight[:899])
    np.testing.assert_array_equal(np.asarray(memory.label).ravel()[:899], run.records["train"].train_label)
    assert np.asarray(memory.label).ravel()[899] == -1
    assert record["config"]["seed"] == 0 and record["run"]["packages"]["jax"] == jax.__version__


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.quick
def test_the_memory_keeps_an_unreadable_image_masked_on_any_number_of_devices(
    tmp_path, monkeypatch, devices, eight_devices
):
    labels = np.array([4, 0, -1, 2, 1, 3, 0])
    vectors = np.random.default_rng(0).normal(size=(7, 5))

    def memory(labels):
        return parallel.shard(memory_lib.create(vectors, labels, parallel.num_devices()))

    state = parallel.replicate(Memory(np.zeros(1, np.float32), np.zeros(1, np.int32)))
    writer = Checkpoints(tmp_path)
    writer.save(1, state, memory(labels))
    writer.close()
    use_devices(monkeypatch, devices)
    # The template of a resumed run has a label for every image, as if all were readable.
    reader = Checkpoints(tmp_path, read_only=True)
    restored = reader.restore_newest(parallel.replicate(state), memory(np.abs(labels)))[1]
    reader.close()
    padding = [-1] * (-7 % devices)
    np.testing.assert_array_equal(np.asarray(restored.label).ravel(), [*labels, *padding])
    assert restored.label.sharding.is_equivalent_to(memory(labels).label.sharding, 2)


def test_a_run_can_be_evaluated_on_a_number_of_devices_that_does_not_divide_its_batch(
    tmp_path, monkeypatch, trains, eight_devices
):
    config = small_config("baseline", **{"train.batch_size": 60, "eval.layers": ("trunk",)})
    workdir.claim(tmp_path / "run", config)
    with monkeypatch.context() as patch:
        use_devices(patch, 1)
        state = restore.initial_state(experiment.load(config))
        checkpoints = Checkpoints(tmp_path / "run")
        checkpoints.save(0, state, None)
        checkpoints.close()
    assert experiment.evaluate(*restore.newest(tmp_path / "run"))["step"] == 0
    with pytest.raises(UserError, match=r"train\.batch_size = 60; expected a multiple of the 8 devices"):
        trains(config, tmp_path / "run")


def test_an_error_about_other_data_names_the_split(tmp_path):
    workdir.check_data(tmp_path, {"train": "a", "test": "b"})  # passes for a run that has not started
    (tmp_path / "data.json").write_text('{"train": "a", "test": "b"}')
    workdir.check_data(tmp_path, {"train": "a", "test": "b"})
    with pytest.raises(UserError, match=r"found other images or labels than when the run started \(split test\)"):
        workdir.check_data(tmp_path, {"train": "a", "test": "c"})


def test_without_fine_labels_a_run_trains_and_keeps_the_best_checkpoint_by_coarse_map(tmp_path, trains):
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for split, n in (("train", 80), ("test", 30)):
        fine = {"label": np.arange(n) % 4} if split == "test" else {}
        image = rng.integers(0, 256, (n, 8, 8, 1), np.uint8)
        np.savez(tmp_path / "data" / f"{split}.npz", image=image, coarse_label=np.arange(n) % 2, **fine)
    options = {"data.source": f"npz:{tmp_path}/data", "eval.every_epochs": 1, "checkpoint.every_epochs": 1}
    metrics = trains(small_config(**{**options, "train.epochs": 3}), tmp_path / "run")
    # Retrieval needs labels of test images only, k-NN those of both splits.
    assert {"map", "recall@1", "coarse/knn_top1"} <= metrics.keys() and "knn_top1" not in metrics
    np.savez(tmp_path / "data" / "test.npz", image=image, coarse_label=np.arange(30) % 2)
    metrics = trains(small_config(**{**options, "train.epochs": 3}), tmp_path / "other")
    assert "map" not in metrics and "coarse/map" in metrics


@pytest.mark.parametrize(
    ("requested", "steps", "on_cpu", "on_accelerators"),
    # 0 chooses, on accelerators, a divisor of at least 50 or calls of about the same length, up to 100.
    [(5, 14, 5, 5), (100, 14, 14, 14), (0, 14, 1, 14), (0, 390, 1, 78), (0, 101, 1, 51), (0, 389, 1, 98), (0, 1, 1, 1)],
)
def test_steps_per_call(requested, steps, on_cpu, on_accelerators, monkeypatch):
    assert pipeline._steps_per_call(requested, steps) == on_cpu
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert pipeline._steps_per_call(requested, steps) == on_accelerators


def test_the_time_of_an_epoch_includes_the_wait_for_its_last_step(monkeypatch):
    clock = [100.0]

    class Late:
        """A value that a device is still computing: fetching it takes 7 seconds."""

        def __array__(self, *_, **__):
            clock[0] += 7
            return np.array([2.0, 1.0])

    monkeypatch.setattr(objective.time, "perf_counter", lambda: clock[0])
    epoch_means = objective.EpochMeans({"loss": [4.0, 1.0]}, seconds=50.0)
    for now in (101.0, 102.0):
        clock[0] = now
        epoch_means.add({"loss": Late()})
    # By hand: 50 s before, 2 s until the second step is dispatched, 7 s for each until it is done.
    assert epoch_means.record() == {"sums": {"loss": [8.0, 3.0]}, "seconds": 50.0 + 2.0 + 14.0}
    clock[0] += 1
    assert epoch_means.record()["seconds"] == 67.0 and epoch_means.means() == {"loss": 8 / 3}
