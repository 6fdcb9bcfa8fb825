"""The cost of SIGKILL: a run is killed repeatedly at random moments until it completes.

Each entry kills during one activity of a run or of its evaluation. Processes and signals are real. The processes are
forked from this one, which has imported everything but has not started to compute, so that a start takes a second.
"""

import collections
import functools
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import sklearn.datasets  # noqa: F401 - imported once for all processes
import tensorboardX  # noqa: F401

from benchmarks import steps
from grafit_jax import experiment, pulse, restore
from grafit_jax.commands import training
from grafit_jax.runs import workdir
from grafit_jax.runs.checkpoint import Checkpoints

_SMALL = {
    "model.trunk": "resnet8", "model.stem": "patch2", "model.head_hidden_dim": 32, "model.embed_dim": 16,
    "train.epochs": 12, "checkpoint.every_epochs": 1, "checkpoint.every_steps": 3, "eval.every_epochs": 1,
}  # fmt: skip
# Maximum seconds between two activities of a process; beyond it the study fails.
_PATIENCE = 300.0
# Activity to kill in -> (latest kill in seconds after it begins, n): the kill happens in one of its first n times,
# drawn at random. A save continues in the background.
_MOMENTS = {"restoring": (0.5, 1), "taking a step": (0.003, 12), "saving": (0.3, 6), "evaluating": (0.3, 2)}
_FORK = multiprocessing.get_context("fork")


def _begin(work: Callable[[], Any], log_file: pathlib.Path, sender: Any) -> None:
    """Runs `work` in the forked process, and sends the step and name of every activity that begins."""
    with open(log_file, "a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    pulse.at = lambda step, doing: sender.send((step, doing.removeprefix("compiling and ")))  # type: ignore[assignment]
    work()


def process(
    work: Callable[[], Any], log_file: pathlib.Path, *, kill_at: str = "", skip: int = 0, seconds: float = 0.0
) -> tuple[int, tuple[int, str]]:
    """Runs `work` in a process to its end, or kills it `seconds` after an activity begins.

    Args:
      work: the work.
      log_file: file for its output.
      kill_at: activity, as `pulse` names it, to kill in; empty for no kill.
      skip: number of times that the activity may begin before.
      seconds: time between the begin of the activity and the kill.

    Returns:
      the exit status, and the last step and activity.
    """
    receiver, sender = _FORK.Pipe(duplex=False)
    forked = _FORK.Process(target=_begin, args=(work, log_file, sender))
    forked.start()
    sender.close()
    place = (0, "starting")
    try:
        while receiver.poll(_PATIENCE):
            place = receiver.recv()
            if place[1] == kill_at and skip == 0:
                time.sleep(seconds)
                forked.kill()
            skip -= place[1] == kill_at
        raise TimeoutError(f"found a process without progress for {_PATIENCE:g} s")
    except (EOFError, OSError):  # the process ended, maybe while sending
        forked.join()
    return forked.exitcode or 0, place


def _evaluate(path: pathlib.Path) -> None:
    """Evaluates a run as experiments/evaluate.py does."""
    pulse.at(0, "restoring")
    run, state = restore.newest(path)
    pulse.at(int(state.step), "evaluating")
    experiment.evaluate(run, state)


def _assert_same(one: pathlib.Path, other: pathlib.Path) -> None:
    """Asserts that parameters, memory, metrics and log of two complete runs are equal to the bit."""
    found = []
    for path in (one, other):
        run = restore.load(workdir.read_config(path), path)
        like = restore.initial_state(run, placeholder=True)
        checkpoints = Checkpoints(path, read_only=True)
        restored = checkpoints.restore_newest(like, restore.initial_memory(run, like, placeholder=True))
        assert restored is not None, "no checkpoint is whole"
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        log = [{k: v for k, v in line.items() if "second" not in k} for line in lines]
        found.append((jax.tree.map(np.asarray, restored[:2]), (path / "metrics.json").read_text(), log))
    (ours, *our_words), (theirs, *their_words) = found
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert our_words == their_words, f"metrics or log lines differ: {our_words} and {their_words}"


def study(doing: str, *, kills: int, seed: int, folder: pathlib.Path) -> dict[str, Any]:
    """Kills runs, and evaluations of them, during an activity, until the number of kills is reached.

    A killed run is started and killed again until it completes. It is then compared with a run that was never killed,
    and the next run begins.

    Args:
      doing: "restoring", "taking a step", "saving" or "evaluating".
      kills: number of kills; the last killed run is resumed to its end.
      seed: seed of the moments.
      folder: directory of the runs.

    Returns:
      the killed activities, the steps lost by a kill, and the number of runs equal to the one without kills.

    Raises:
      RuntimeError: a run does not resume, or ends with another result.
    """
    # A separate cache, since a kill may leave half an entry behind.
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = steps.from_file("digits", "method=grafit")
    config.update_from_flattened_dict(_SMALL)
    path, log_file, draw = folder / "killed", folder / "log.txt", random.Random(f"{doing} {seed}")

    def check(ok: bool, message: str) -> None:
        if not ok:
            raise RuntimeError(f"{message}:\n{log_file.read_text()[-3000:]}")

    resumed: Callable[[], Any] = functools.partial(training.train, config, path)
    check(
        process(functools.partial(training.train, config, folder / "whole"), log_file)[0] == 0, "the first run failed"
    )
    hits: collections.Counter[str] = collections.Counter()
    lost: list[int] = []
    half_written = equal = 0
    while hits.total() < kills or path.exists():
        work = resumed
        moment: dict[str, Any] = {}
        if hits.total() < kills:
            reading = doing in ("restoring", "evaluating") and bool(_steps(path)) and draw.random() < 0.5
            # A run that is killed whenever it restores never progresses: let it take steps every other time.
            progress = doing == "restoring" and not reading and (not _steps(path) or draw.random() < 0.5)
            at_what = "taking a step" if progress else doing
            work = functools.partial(_evaluate, path) if reading else resumed
            latest, often = _MOMENTS[at_what]
            skip = 0 if reading else draw.randrange(often)
            moment = {"kill_at": at_what, "skip": skip, "seconds": draw.random() * latest}
        status, (step, at) = process(work, log_file, **moment)
        if status == -signal.SIGKILL:
            hits[at] += 1
            half_written += any((path / "checkpoints").glob("*tmp*"))
            if work is resumed and at not in ("starting", "loading data", "restoring", "creating the first state"):
                lost.append(step - max(_steps(path), default=0))
            continue
        check(status == 0, f"a run, resumed after kill {hits.total()}, failed")
        if work is resumed:
            status, _ = process(functools.partial(_assert_same, folder / "whole", path), log_file)
            check(status == 0, f"a run ended with another result after kill {hits.total()}")
            damaged = [*(path / "checkpoints").glob("damaged-*")]
            check(not damaged and "damaged" not in log_file.read_text(), f"a kill has left {damaged} unreadable")
            equal += 1
            shutil.rmtree(path)
    return {
        "work": f"SIGKILL while {doing}",
        "kills": hits.total(),
        "hits": dict(hits),
        "half_written": half_written,
        "steps_lost": float(np.mean(lost)) if lost else 0.0,
        "most_lost": max(lost, default=0),
        "runs_equal": equal,
    }


def _steps(path: pathlib.Path) -> list[int]:
    """Returns the steps of the complete checkpoints of a run."""
    return [int(p.name) for p in (path / "checkpoints").glob("*") if p.name.isdigit()]


def _entry(doing: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return study(doing, kills=50, seed=0, folder=pathlib.Path(folder))


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    doing.replace(" ", "_"): functools.partial(_entry, doing) for doing in _MOMENTS
}
