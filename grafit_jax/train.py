"""The training loop: resume, train, log, evaluate, save."""

import contextlib
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from grafit_jax import config as config_lib
from grafit_jax import experiment, fit, parallel, presets, pulse, restore, train_step
from grafit_jax.errors import UserError
from grafit_jax.experiment import Experiment
from grafit_jax.objective import EpochMeans
from grafit_jax.runs import clusterfit, console, preemption, provenance, results, workdir
from grafit_jax.runs.checkpoint import Checkpoints
from grafit_jax.runs.metric_writer import MetricWriter
from grafit_jax.saved import description
from grafit_jax.state import TrainState

# Called with a complete run, its final state (None if it was complete before) and its metrics.
Finish = Callable[[Experiment, TrainState | None, dict[str, float]], None]


def train(
    config: ml_collections.ConfigDict, path: pathlib.Path, *, allowed: Sequence[str] = (), finish: Finish | None = None
) -> dict[str, float]:
    """Trains a model, or resumes a stopped run in the same workdir; returns the final metrics.

    Writes config.json, model.json (class names and image shape), metrics.jsonl (one line per epoch and per evaluation),
    tensorboard/, checkpoints/, metrics.json (the metrics of the final weights, as `experiments/evaluate.py` prints
    them), run.json (time, environment, data), images.csv.gz (the list of the image files), clusters.npz for ClusterFit,
    and broken.txt if unreadable images were skipped.

    Args:
      config: see `config.default`; keys may be open, see `presets.resolve`.
      path: the workdir.
      allowed: config keys that may change on resume.
      finish: called once the run is complete, while its workdir is still locked; a signal interrupts it.

    Raises:
      UserError: the config, data or workdir are invalid, which is checked before training; or the loss is not finite.
      Preempted: the run was asked to stop and has saved its state.
    """
    with preemption.watch() as stop, contextlib.ExitStack() as held:
        # 1. Check everything that a user can get wrong, before anything is written.
        with stop.at_once():
            pulse.at(0, "choosing what the config leaves open")
            config = presets.resolve(config, path)
            pulse.at(0, "loading data")
            workdir.check(path, config, allowed)
            parallel.check_same("keys of the config", json.dumps(config_lib.without_places(config)))
            # The run may be evaluated from another directory. Hosts may keep their data in different ones.
            config = config_lib.with_absolute_paths(config)
            # Another run may use an existing folder, so lock it before the data are loaded.
            if exists := parallel.all_agree(path.is_dir()):
                held.enter_context(workdir.lock(path))
            run = restore.load(config, path)
            for split, fingerprint in sorted(run.fingerprints().items()):
                parallel.check_same(f"images or labels of split {split}, or another order of them", fingerprint)
            if not parallel.all_agree((path / "config.json").is_file()):  # a resumed run does not read the weights
                parallel.check_same("weights in model.pretrained or model.init", restore.check_start(run))
            complete = parallel.all_agree((path / "metrics.json").is_file())
            if run.total_steps and not complete:
                fit.check(run)
        if not exists:
            held.enter_context(workdir.lock(path))

        # 2. Claim the workdir. A complete run keeps its config and result.
        workdir.claim(path, run.config, allowed)
        workdir.check_data(path, run.fingerprints())  # clusters, too
        if run.clusters is not None and not clusterfit.is_saved(path):
            clusterfit.save(path, run.clusters)
        workdir.write_images(path, run.records)
        workdir.put(path, "data.json", json.dumps(run.fingerprints()) + "\n")
        description.write(path, run.config, run.records)
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
    # 3. Restore the newest checkpoint or initialise the state, and put the training set on the devices.
    checkpoints = Checkpoints(path, keep=config.checkpoint.keep)
    with stop.at_once():
        pulse.at(0, "restoring")
        console.start(config, run.training, run.records["test"], restore.num_parameters(run), run.total_steps)
        resumed = restore.resumed(run, checkpoints)
        if resumed is None:
            pulse.at(0, "creating the first state")
            resumed = (*restore.initial(run), {})
        state, memory, progress = resumed
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

    # 4. The pmapped step, by steps per call: the last call of an epoch may take fewer steps.
    calls: dict[int, Any] = {}
    # Stored with checkpoints and the result.
    data = {"data_fingerprint": run.fingerprints(), "data_content": experiment.contents(run.records)}
    origin = provenance.describe() | data
    facts = {"config": config_lib.flatten(config), "run": origin}

    # 5. For each epoch: train, log, evaluate, save. A checkpoint within an epoch stores the sums of its metrics so far.
    with contextlib.ExitStack() as cleanup:  # closes on interrupts too, which waits for a pending checkpoint
        cleanup.callback(writer.close)
        cleanup.callback(checkpoints.close)
        # Repeat an evaluation that was interrupted after its checkpoint was saved. Hosts may see the log with a delay,
        # so they must agree.
        first_epoch, within = divmod(start, run.steps_per_epoch)
        at_epoch_end = 0 < start < run.total_steps and not within
        if at_epoch_end and is_evaluated(first_epoch) and not parallel.all_agree(start in writer.evaluations):
            evaluate()
        checked = start
        for epoch in range(first_epoch, run.epochs):
            epoch_means, progress = EpochMeans(**progress), {}
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
                due = every > 0 and step // every > (step - taken) // every  # the call passed a multiple of `every`
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
            console.warn_of_guessing(config, run.training, run.knn_levels, line, run.steps_per_epoch)
            checked = step
            writer.epoch(line)
            workdir.write_broken(path, run.records)

            last = epoch + 1 == run.epochs
            evaluates = last or is_evaluated(epoch + 1)
            try:
                if evaluates and not stopping:
                    evaluate()
            finally:  # save the epoch even if its evaluation fails
                interrupted = evaluates and step not in writer.evaluations
                if stopping or interrupted or last or (epoch + 1) % config.checkpoint.every_epochs == 0:
                    pulse.at(step, "saving")
                    checkpoints.save(step, state, memory, facts)
            if stopping:
                raise stop.preempted(step)

        # 6. The result on the final weights, whose evaluation may have been interrupted after the last save.
        if not parallel.all_agree(run.total_steps in writer.evaluations):
            evaluate()
        if not run.epochs and checkpoints.latest_step() is None:  # the model is the initial weights
            checkpoints.save(step, state, memory, facts)
    metrics = writer.evaluations[run.total_steps]
    _write_result(run, path, metrics, origin)
    return state, metrics


def _write_result(run: Experiment, path: pathlib.Path, metrics: dict[str, float], origin: dict[str, Any]) -> None:
    """Writes run.json, then metrics.json, which marks the run as complete."""
    config, log = run.config, workdir.cut_log(path, run.total_steps)
    facts = origin | {
        "train_seconds": sum(line.get("seconds", 0.0) for line in log),
        "views_per_image": run.method.views_per_image(config.views.num_views),
        "train_images": len(run.records["train"]),
        "test_images": len(run.records["test"]),
        "curve": results.curve(log),
    }
    workdir.put(path, "run.json", json.dumps(facts, indent=2) + "\n")
    workdir.put(path, "metrics.json", json.dumps(metrics) + "\n")
    # Written last: after training for more epochs, the old number of epochs in it marks a run killed before this line.
    workdir.put(path, "config.json", config_lib.to_json(config) + "\n")


def _complete(path: pathlib.Path, run: Experiment) -> dict[str, Any]:
    """Returns the metrics of a complete run; empty if it is incomplete or is to train for more epochs."""
    if not parallel.all_agree((path / "metrics.json").is_file()):
        return {}
    metrics = json.loads((path / "metrics.json").read_text())
    epochs, before = run.config.train.epochs, workdir.read_config(path).train.epochs
    if epochs < before:
        raise UserError(
            f"found train.epochs = {epochs}; expected at least {before}, since {path} is complete after that many; use "
            "another --workdir to train for fewer."
        )
    if epochs == before:
        console.say(f"{path} is complete; nothing to train")
        return metrics
    checkpoints = Checkpoints(path, read_only=True)
    newest = checkpoints.latest_step() or 0
    checkpoints.close()
    if newest < metrics["step"]:
        raise UserError(
            f"{path}: found step {newest} as its newest checkpoint; expected step {metrics['step']}, the last of the "
            "complete run; use another --workdir."
        )
    console.say(f"{path} was complete after step {metrics['step']}; its result is kept until the new one is written")
    return {}


def _stop_if_not_finite(line: dict[str, Any], first: int, last: int, checkpoints: Checkpoints) -> None:
    bad = [name for name in ("loss", "gradient_norm") if not math.isfinite(line[name])]
    if bad:
        checkpoints.wait()
        raise UserError(
            f"found {' and '.join(bad)} not finite between steps {first} and {last}, which were not saved; the newest "
            f"checkpoint is of step {checkpoints.latest_step() or 0}; lower optimizer.learning_rate or raise "
            "loss.temperature, in a new --workdir."
        )


def _stop_if_all_skipped(line: dict[str, Any], first: int, last: int) -> None:
    if line.get("skipped") == 1:  # so the weights have diverged
        raise UserError(
            f"found every step from {first} to {last} skipped, since its loss or gradient is not finite; lower "
            "optimizer.learning_rate or raise loss.temperature, in a new --workdir."
        )
