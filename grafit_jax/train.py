"""The loop: resume, train, log, evaluate, save."""

import contextlib
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from grafit_jax import config as config_lib
from grafit_jax import experiment, parallel, pulse, restore, train_step
from grafit_jax.errors import UserError
from grafit_jax.experiment import Experiment
from grafit_jax.objective import EpochMeans
from grafit_jax.runs import clusterfit, console, preemption, provenance, results, workdir
from grafit_jax.runs.checkpoint import Checkpoints
from grafit_jax.runs.metric_writer import MetricWriter
from grafit_jax.state import TrainState

# Of a complete run: its parts, its state (None where it was complete already) and its metrics.
Finish = Callable[[Experiment, TrainState | None, dict[str, float]], None]


def train(
    config: ml_collections.ConfigDict, path: pathlib.Path, *, allowed: Sequence[str] = (), finish: Finish | None = None
) -> dict[str, float]:
    """Trains by `config` in the workdir `path`, or resumes a run that stopped; returns the final metrics.

    Leaves config.json, metrics.jsonl (a line an epoch and an evaluation), tensorboard/, checkpoints/, metrics.json (the
    final weights' metrics, as `experiments/evaluate.py` prints them), run.json (time, environment, data) and, of
    ClusterFit, clusters.npz; where images could not be read and were left out, broken.txt.

    Args:
      config: see `config.default`.
      path: the workdir.
      allowed: keys that may differ from the config that the run was started with.
      finish: called once the run is complete, while it still holds its workdir; a signal cuts it short.

    Raises:
      UserError: a config, data set or workdir that cannot work, before training; a loss that is not finite.
      Preempted: it was asked to stop, and has saved itself.
    """
    with preemption.watch() as stop, contextlib.ExitStack() as held:
        # 1. Everything that the user can have got wrong, before anything is written or hours are spent.
        with stop.at_once():
            pulse.at(0, "loading data")
            workdir.check(path, config, allowed)
            parallel.check_same("keys of the config", json.dumps(config_lib.without_places(config)))
            # A folder that is there may be another run's, which may be loading its data too.
            if is_there := parallel.all_agree(path.is_dir()):
                held.enter_context(workdir.lock(path))
            run = restore.load(config, path)
            for split, fingerprint in sorted(run.fingerprints().items()):
                parallel.check_same(f"images or labels of split {split}, or another order of them", fingerprint)
            if not parallel.all_agree((path / "config.json").is_file()):  # a run that resumes has no need of the file
                parallel.check_same("weights in model.pretrained", restore.check_start(run))
        if not is_there:
            held.enter_context(workdir.lock(path))

        # 2. The workdir is this run's; of one that is complete nothing is touched.
        workdir.claim(path, run.config, allowed)
        workdir.check_data(path, run.fingerprints())
        if run.clusters is not None and not clusterfit.is_saved(path):
            clusterfit.save(path, run.clusters)
        workdir.put(path, "data.json", json.dumps(run.fingerprints()) + "\n")
        workdir.write_broken(path, run.records)
        metrics, state = _complete(path, run), None
        if not metrics:
            state, metrics = _loop(run, path, stop)
        if finish is not None:
            with stop.at_once():
                finish(run, state, metrics)
        return metrics


def _loop(run: Experiment, path: pathlib.Path, stop: preemption.Stop) -> tuple[TrainState, dict[str, float]]:
    config = run.config
    # 3. The newest checkpoint, or a fresh state, and the training set, on the devices.
    checkpoints = Checkpoints(path, keep=config.checkpoint.keep)
    with stop.at_once():
        pulse.at(0, "restoring")
        console.start(config, run.training, run.records["test"], restore.num_parameters(run), run.total_steps)
        resumed = restore.resumed(run, checkpoints)
        if resumed is None:
            pulse.at(0, "creating the first state")
            resumed = (*restore.initial(run), {})
        state, memory, begun = resumed
        feed = experiment.make_feed(run)
    step = start = int(state.step)
    if start:
        console.say(f"{path} resumes after step {start} of {run.total_steps}")
    writer = MetricWriter(
        path, start=start, total_steps=run.total_steps, batch_size=config.train.batch_size, name=config.method
    )
    checkpoints.evaluations = writer.evaluations

    def is_evaluated(epoch: int) -> bool:
        return config.eval.every_epochs > 0 and epoch % config.eval.every_epochs == 0

    def evaluate() -> None:
        pulse.at(step, "evaluating")
        with stop.at_once():
            metrics = experiment.evaluate(run, state)
        writer.evaluation(metrics)

    # 4. The pmapped step, by the number of steps in a call: the last one of an epoch may have fewer.
    calls: dict[int, Any] = {}
    # Stored with checkpoints and the result.
    data = {"data_fingerprint": run.fingerprints(), "data_content": experiment.contents(run.records)}
    standing = provenance.describe() | data
    facts = {"config": config_lib.flatten(config), "run": standing}

    # 5. Epoch by epoch: train, log, evaluate, save. A checkpoint within an epoch tells what its steps have come to.
    with contextlib.ExitStack() as at_the_end:  # also of an interrupted run: a checkpoint on its way is waited for
        at_the_end.callback(writer.close)
        at_the_end.callback(checkpoints.close)
        # An evaluation that was cut short, after the save of its step; all see the same log, but perhaps not yet.
        first_epoch, within = divmod(start, run.steps_per_epoch)
        at_epochs_end = 0 < start < run.total_steps and not within
        if at_epochs_end and is_evaluated(first_epoch) and not parallel.all_agree(start in writer.evaluations):
            evaluate()
        checked = start
        for epoch in range(first_epoch, config.train.epochs):
            epoch_means, begun = EpochMeans(**begun), {}
            end = (epoch + 1) * run.steps_per_epoch
            pulse.at(step, "reading a batch")
            for inputs in feed.epoch(epoch, step % run.steps_per_epoch):
                taken = min(feed.steps_per_call, end - step)
                pulse.at(step, "taking a step" if taken in calls else "compiling and taking a step")
                if taken not in calls:
                    calls[taken] = train_step.pmap_steps(run, feed, taken)
                state, memory, sums = calls[taken](state, memory, inputs)
                epoch_means.add(sums)
                step += taken
                writer.steps(taken)
                stopping = stop(step)
                every = config.checkpoint.every_steps
                due = every > 0 and step // every > (step - taken) // every  # these steps have passed a multiple of it
                if step < end and (stopping or due):
                    pulse.at(step, "saving")
                    record = epoch_means.record()
                    _stop_if_not_finite(epoch_means.means(), checked, step, checkpoints)
                    checked = step
                    checkpoints.save(step, state, memory, facts | {"progress": record})
                    if stopping:
                        raise stop.preempted(step)
                pulse.at(step, "reading a batch")
            pulse.at(step, "waiting for the devices")
            record = epoch_means.record()
            line = epoch_means.means() | {
                "step": step,
                "epoch": epoch + 1,
                "learning_rate": float(run.learning_rate(step - 1)),
                "seconds": record["seconds"],
                "data_wait_seconds": feed.waited,
                "images_per_second": run.steps_per_epoch * config.train.batch_size / record["seconds"],
            }
            _stop_if_not_finite(line, checked, step, checkpoints)
            _stop_if_all_skipped(line, step - run.steps_per_epoch, step)
            console.warn_of_guessing(run.method, run.training, config.queue.size, line, run.steps_per_epoch)
            checked = step
            writer.epoch(line)
            workdir.write_broken(path, run.records)

            last = epoch + 1 == config.train.epochs
            judged = last or is_evaluated(epoch + 1)
            try:
                if judged and not stopping:
                    evaluate()
            finally:  # whatever becomes of an evaluation, the epochs are kept
                cut_short = judged and step not in writer.evaluations
                if stopping or cut_short or last or (epoch + 1) % config.checkpoint.every_epochs == 0:
                    pulse.at(step, "saving")
                    checkpoints.save(step, state, memory, facts)
            if stopping:
                raise stop.preempted(step)

        # 6. The result, on the final weights, whose evaluation may have been cut short after the last save.
        if not parallel.all_agree(run.total_steps in writer.evaluations):
            evaluate()
    metrics = writer.evaluations[run.total_steps]
    _write_result(run, path, metrics, standing)
    return state, metrics


def _write_result(run: Experiment, path: pathlib.Path, metrics: dict[str, float], standing: dict[str, Any]) -> None:
    """run.json, then metrics.json, which says that a run is complete."""
    config, log = run.config, workdir.cut_log(path, run.total_steps)
    facts = standing | {
        "train_seconds": sum(line.get("seconds", 0.0) for line in log),
        "views_per_image": run.method.views_per_image(config.views.num_views),
        "train_images": len(run.records["train"]),
        "test_images": len(run.records["test"]),
        "curve": results.curve(log),
    }
    workdir.put(path, "run.json", json.dumps(facts, indent=2) + "\n")
    workdir.put(path, "metrics.json", json.dumps(metrics) + "\n")
    # Last, since the epochs in it tell a complete run that has trained on from one that was killed before this.
    workdir.put(path, "config.json", config_lib.to_json(config) + "\n")


def _complete(path: pathlib.Path, run: Experiment) -> dict[str, Any]:
    """The metrics of a run that is complete; empty where it is not, or resumes for more epochs than it had."""
    if not parallel.all_agree((path / "metrics.json").is_file()):
        return {}
    metrics = json.loads((path / "metrics.json").read_text())
    epochs, before = run.config.train.epochs, workdir.read_config(path).train.epochs
    if epochs < before:
        raise UserError(
            f"{path} is complete after {before} epochs, and train.epochs = {epochs}: want as many or more, or another "
            "--workdir."
        )
    if epochs == before:
        console.say(f"{path} is complete: nothing is trained")
        return metrics
    checkpoints = Checkpoints(path, read_only=True)
    newest = checkpoints.latest_step() or 0
    checkpoints.close()
    if newest < metrics["step"]:
        raise UserError(
            f"{path} is complete after step {metrics['step']}: found step {newest} as its newest checkpoint, expected "
            "that last step, to train on from; use another --workdir."
        )
    console.say(f"{path} was complete after step {metrics['step']}: its result stays until there is the new one")
    return {}


def _stop_if_not_finite(line: dict[str, Any], first: int, last: int, checkpoints: Checkpoints) -> None:
    bad = [name for name in ("loss", "gradient_norm") if not math.isfinite(line[name])]
    if bad:
        checkpoints.wait()
        raise UserError(
            f"{' and '.join(bad)} not finite between steps {first} and {last}: nothing of these steps was saved, the "
            f"newest checkpoint is of step {checkpoints.latest_step() or 0}; lower optimizer.learning_rate or raise "
            "loss.temperature, in a new --workdir."
        )


def _stop_if_all_skipped(line: dict[str, Any], first: int, last: int) -> None:
    if line.get("skipped") == 1:  # the weights themselves give nothing finite any more
        raise UserError(
            f"every step from {first} to {last} was skipped, its loss or gradient not finite: lower "
            "optimizer.learning_rate or raise loss.temperature, in a new --workdir."
        )
