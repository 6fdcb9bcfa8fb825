"""The loop: resume, train, log, evaluate, save."""

import contextlib
import functools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from grafit_jax import config as config_lib
from grafit_jax import experiment, parallel, pulse, train_step
from grafit_jax.data import pipeline
from grafit_jax.errors import UserError, warn
from grafit_jax.objective import EpochMeans
from grafit_jax.report import write as webpage
from grafit_jax.runs import clusterfit, console, preemption, progress, provenance, results, workdir
from grafit_jax.runs.checkpoint import Checkpoints
from grafit_jax.runs.results import seal
from grafit_jax.state import TrainState

# Of a scan on accelerators, at most: a run that is asked to stop does so between two of them.
_STEPS_PER_CALL = 100


def train(config: ml_collections.ConfigDict, path: pathlib.Path, *, allowed: Sequence[str] = ()) -> dict[str, float]:
    """Trains by `config` in the workdir `path`, or goes on where a run stopped; returns the final metrics.

    Leaves config.json, metrics.jsonl (a line an epoch and an evaluation), tensorboard/, checkpoints/, metrics.json (the
    final weights' metrics, as `experiments/evaluate.py` prints them), run.json (time, environment, data), report.html
    (all of it to look at) and, of ClusterFit, clusters.npz; where images could not be read and were left out,
    broken.txt.

    Args:
      config: see `config.default`.
      path: the workdir.
      allowed: keys that may differ from the config that the run was started with.

    Raises:
      UserError: a config, data set or workdir that cannot work, before training; a loss that is not finite.
      Preempted: it was asked to stop, and has saved itself.
    """
    # 1. Everything that the user can have got wrong, before anything is written or hours are spent.
    with preemption.watch() as stop, contextlib.ExitStack() as held:
        with stop.at_once():
            pulse.at(0, "loading data")
            workdir.check(path, config, allowed)
            parallel.check_same("keys of the config", json.dumps(config_lib.without_places(config)))
            # A folder that is there may be another run's, which may be loading its data too.
            if is_there := parallel.all_agree(path.is_dir()):
                held.enter_context(workdir.lock(path))
            run = experiment.load(config, path=path)
            for split, fingerprint in sorted(experiment.fingerprints(run).items()):
                parallel.check_same(f"images or labels of split {split}, or another order of them", fingerprint)
            if not parallel.all_agree((path / "config.json").is_file()):  # a run that resumes has no need of the file
                parallel.check_same("weights in model.pretrained", experiment.check_start(run))
        if not is_there:
            held.enter_context(workdir.lock(path))
        return _train(run, path, allowed, stop)


def _train(
    run: experiment.Experiment, path: pathlib.Path, allowed: Sequence[str], stop: preemption.Stop
) -> dict[str, float]:
    config = run.config
    workdir.claim(path, config, allowed)
    fingerprints = experiment.fingerprints(run)
    workdir.check_data(path, fingerprints)
    if run.clusters is not None and not clusterfit.is_saved(path):
        clusterfit.save(path, run.clusters)
    workdir.put(path, "data.json", json.dumps(fingerprints) + "\n")
    workdir.write_broken(path, run.records)
    metrics = _complete(path, run)
    if metrics:  # nothing that is there is touched
        if not parallel.all_agree((path / webpage.NAME).is_file()):  # it was killed before that was written
            with stop.at_once():
                _leave_page(run, path, metrics["step"])
        console.result(run, metrics, path / webpage.NAME)
        return metrics

    # 2. The newest checkpoint, or a fresh state, and the training set, on the devices.
    checkpoints = Checkpoints(path, keep=config.checkpoint.keep)
    with stop.at_once():
        pulse.at(0, "restoring")
        console.start(run)
        restored = _restored(run, checkpoints)
        if restored is None:
            pulse.at(0, "creating the first state")
            restored = (*experiment.initial(run), {})
        state, memory, begun = restored
        feed = make_feed(run)
    step = start = int(state.step)
    if start:
        progress.say(f"{path} resumes after step {start} of {run.total_steps}")

    # 3. What was logged after that checkpoint is cut.
    log = workdir.cut_log(path, start)
    tensorboard = _tensorboard(path, start)
    metrics = next((_evaluation(line) for line in reversed(log) if _evaluation(line)), {})

    def is_evaluated(epoch: int) -> bool:
        return config.eval.every_epochs > 0 and epoch % config.eval.every_epochs == 0

    def evaluate() -> dict[str, float]:
        pulse.at(step, "evaluating")
        with stop.at_once():
            metrics = _evaluated(run, state, path)
        _to_tensorboard(tensorboard, "eval", metrics)
        return metrics

    # 4. The pmapped step, of so many steps: the last call of an epoch may have fewer.
    call_of = functools.cache(functools.partial(make_call, run, feed))
    # What the numbers in a checkpoint, and the result, stand on.
    standing = provenance.describe()
    standing |= {"data_fingerprint": fingerprints, "data_content": experiment.contents(run.records)}
    facts = {"config": config_lib.flatten(config), "run": standing}

    # 5. Epoch by epoch: train, log, evaluate, save. A checkpoint within an epoch tells what its steps have come to.
    bar = progress.bar(run.total_steps * config.train.batch_size, start * config.train.batch_size, config.method)
    with contextlib.ExitStack() as at_the_end:  # also of an interrupted run: a checkpoint on its way is waited for
        for close in (bar.close, functools.partial(_close, tensorboard), checkpoints.close):
            at_the_end.callback(close)
        # An evaluation that was cut short, after the save of its step; all see the same log, but perhaps not yet.
        first_epoch, within = divmod(start, run.steps_per_epoch)
        due = 0 < start < run.total_steps and not within and is_evaluated(first_epoch)
        if due and not parallel.all_agree(metrics.get("step") == start):
            metrics = evaluate()
            checkpoints.add_metrics(start, metrics)
        checked, estimate, lengths = start, progress.Estimate(run.total_steps), set[int]()
        for epoch in range(first_epoch, config.train.epochs):
            epoch_means, begun = EpochMeans(**begun), {}
            end = (epoch + 1) * run.steps_per_epoch
            pulse.at(step, "reading a batch")
            for inputs in feed.epoch(epoch, step % run.steps_per_epoch):
                taken = min(feed.steps_per_call, end - step)
                compiles = taken not in lengths
                lengths.add(taken)
                pulse.at(step, "compiling and taking a step" if compiles else "taking a step")
                state, memory, sums = call_of(taken)(state, memory, inputs)
                epoch_means.add(sums)
                step += taken
                bar.update(taken * config.train.batch_size)
                estimate(step, sums, compiled=compiles)
                stopping = stop(step)
                if step < end and (stopping or _is_due(step, taken, config.checkpoint.every_steps)):
                    pulse.at(step, "saving")
                    record = epoch_means.record()
                    _stop_if_not_finite(epoch_means.means(), checked, step, checkpoints)
                    checked = step
                    checkpoints.save(step, state, memory, record=facts | {"progress": record})
                    if stopping:
                        raise stop.preempted(step)
                pulse.at(step, "reading a batch")
            pulse.at(step, "waiting for the devices")
            record = epoch_means.record()
            estimate.pause(step)
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
            console.warn_of_guessing(run, line)
            checked = step
            bar.set_postfix(loss=f"{line['loss']:.3f}")
            workdir.append_log(path, line)
            _to_tensorboard(tensorboard, "train", line)
            workdir.write_broken(path, run.records)

            last = epoch + 1 == config.train.epochs
            judged = last or is_evaluated(epoch + 1)
            evaluated = None
            try:
                if judged and not stopping:
                    evaluated = metrics = evaluate()
            finally:  # whatever becomes of an evaluation, the epochs are kept
                cut_short = judged and evaluated is None
                if stopping or cut_short or last or (epoch + 1) % config.checkpoint.every_epochs == 0:
                    pulse.at(step, "saving")
                    checkpoints.save(step, state, memory, evaluated, facts)
            if stopping:
                raise stop.preempted(step)

    # 6. The result, on the final weights. run.json first: metrics.json says that a run is complete.
    # The last evaluation may have been cut short, after the last save; all see the same log, but perhaps not yet.
    if not parallel.all_agree(metrics.get("step") == run.total_steps):
        pulse.at(step, "evaluating")
        with stop.at_once():
            metrics = _evaluated(run, state, path)
    log = workdir.cut_log(path, run.total_steps)
    run_facts = standing | {
        "train_seconds": sum(line.get("seconds", 0.0) for line in log),
        "views_per_image": run.method.views_per_image(config.views.num_views),
        "train_images": len(run.records["train"]),
        "test_images": len(run.records["test"]),
        "curve": results.curve(log),
    }
    sealed = seal(run_facts, config_lib.flatten(config), metrics)
    workdir.put(path, "run.json", json.dumps(sealed, indent=2) + "\n")
    workdir.put(path, "metrics.json", json.dumps(metrics) + "\n")
    # Last, since the epochs in it tell a complete run that has trained on from one that was killed before this.
    workdir.put(path, "config.json", config_lib.to_json(config) + "\n")
    pulse.at(run.total_steps, "writing report.html")
    with stop.at_once():
        webpage.leave(run, state, path)
    console.result(run, metrics, path / webpage.NAME)
    return metrics


def make_step(run: experiment.Experiment, *, axis_name: str | None = parallel.AXIS) -> train_step.Step:
    """The training step of a run, for one device."""
    config = run.config
    return train_step.make_train_step(
        network=run.network,
        method=run.method,
        tx=run.tx,
        views=run.views,
        key_views=run.key_views,
        num_views=config.views.num_views,
        tau=run.tau,
        loss=config.loss,
        mixing=config.mixing,
        memory_momentum=run.memory_momentum,
        skip_not_finite=config.train.skip_not_finite,
        axis_name=axis_name,
    )


def make_feed(run: experiment.Experiment) -> pipeline.Resident | pipeline.Streamed:
    """Where the batches of a run come from."""
    config, records = run.config, run.training
    batches = {"seed": config.seed, "batch_size": config.train.batch_size}
    if config.data.stream:
        return pipeline.Streamed(records, shuffle_buffer=config.train.shuffle_buffer, crops=run.crops, **batches)
    steps_per_call = _steps_per_call(config.train.steps_per_call, run.steps_per_epoch)
    return pipeline.Resident(records, steps_per_call=steps_per_call, **batches)


def make_call(run: experiment.Experiment, feed: pipeline.Resident | pipeline.Streamed, steps: int | None = None):
    """The pmapped step of a run over what `feed` gives: `(state, memory, inputs) -> (state, memory, metrics)`.

    It takes as many steps as the feed has in a call, or `steps`, where an epoch has no more left.
    """
    steps = feed.steps_per_call if steps is None else steps
    return train_step.pmap_steps(make_step(run), batch_of=feed.batch_of, in_axes=feed.in_axes, steps_per_call=steps)


def _steps_per_call(wanted: int, steps: int) -> int:
    """How many of an epoch's `steps` a call takes: `wanted`, or what is best for the device, for 0."""
    if wanted:
        return min(wanted, steps)
    # On CPU a step takes long enough for a call of its own, and convolutions are slow inside of a loop.
    if jax.default_backend() == "cpu":
        return 1
    # Calls of one length are compiled once; but a prime number of steps makes no calls of one step.
    divisor = max(n for n in range(1, min(_STEPS_PER_CALL, steps) + 1) if steps % n == 0)
    return divisor if 2 * divisor >= min(_STEPS_PER_CALL, steps) else -(-steps // -(-steps // _STEPS_PER_CALL))


def _restored(run: experiment.Experiment, checkpoints: Checkpoints) -> tuple[Any, Any, dict[str, Any]] | None:
    """State, memory and the progress of a begun epoch, of the newest checkpoint, if there is one."""
    if checkpoints.latest_step() is None:
        return None
    state = experiment.initial_state(run, placeholder=True)
    memory = experiment.initial_memory(run, state, placeholder=True)
    found = checkpoints.restore_newest(state, memory)
    return found and (found[0], found[1], found[2].get("progress", {}))


def _complete(path: pathlib.Path, run: experiment.Experiment) -> dict[str, Any]:
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
        progress.say(f"{path} is complete: nothing is trained")
        return metrics
    checkpoints = Checkpoints(path, read_only=True)
    newest = checkpoints.latest_step() or 0
    checkpoints.close()
    if newest < metrics["step"]:
        raise UserError(
            f"{path} is complete after step {metrics['step']}: found step {newest} as its newest checkpoint, expected "
            "that last step, to train on from; use another --workdir."
        )
    progress.say(f"{path} was complete after step {metrics['step']}: its result stays until there is the new one")
    return {}


def _leave_page(run: experiment.Experiment, path: pathlib.Path, step: int) -> None:
    """The page of a run that is complete, if its weights after the last step are still there."""
    pulse.at(step, "writing report.html")
    found = None
    try:
        checkpoints = Checkpoints(path, read_only=True)
        found = checkpoints.restore_newest(experiment.initial_state(run, placeholder=True))
        checkpoints.close()
    except Exception as error:  # the run is complete, and keeps being it
        warn(f"no {path / webpage.NAME} was written ({error}).")
    same = found is not None and int(found[0].step) == step
    if parallel.all_agree(same) and found is not None:
        webpage.leave(run, found[0], path)


def _is_due(step: int, taken: int, every: int) -> bool:
    """Whether the last `taken` steps have passed a multiple of `every` (0: never)."""
    return every > 0 and step // every > (step - taken) // every


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


def _evaluated(run: experiment.Experiment, state: TrainState, path: pathlib.Path) -> dict[str, float]:
    """The metrics of a state, which are in the log from now on."""
    metrics = experiment.evaluate(run, state)
    values = {f"eval/{name}": value for name, value in metrics.items() if name != "step"}
    workdir.append_log(path, values | {"step": metrics["step"]})
    return metrics


def _evaluation(line: dict[str, Any]) -> dict[str, float]:
    """The metrics in a log line, if it is an evaluation's."""
    found = {k.removeprefix("eval/"): v for k, v in line.items() if k.startswith("eval/")}
    return found | {"step": line["step"]} if found else {}


def _tensorboard(path: pathlib.Path, start: int):
    import tensorboardX  # here, since it takes a while to import

    return tensorboardX.SummaryWriter(
        str(path / "tensorboard"), purge_step=start + 1 if start else None, write_to_disk=parallel.is_first()
    )


def _close(tensorboard) -> None:
    try:
        tensorboard.close()
    except OSError as error:  # of a full disk, which the checkpoints tell of too
        warn(f"what TensorBoard shows is not complete ({error}).")


def _to_tensorboard(writer, group: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        writer.add_scalar(f"{group}/{name}", value, values["step"])
