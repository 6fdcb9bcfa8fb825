"""What SIGKILL costs: a run killed again and again at random moments, until it has come to its end all the same.

Every entry kills in one of the things that a run, or an evaluation of it, is at. The processes are real and the signals
too; they are forked from this one, which has imported everything and not begun to compute, so that a start takes a
second.
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
import sklearn.datasets  # noqa: F401 - so that no process has to import it
import tensorboardX  # noqa: F401

from benchmarks import steps
from grafit_jax import experiment, pulse, restore
from grafit_jax.commands import train
from grafit_jax.runs import workdir
from grafit_jax.runs.checkpoint import Checkpoints

_SMALL = {
    "model.trunk": "resnet8", "model.stem": "patch2", "model.head_hidden_dim": 32, "model.embed_dim": 16,
    "train.epochs": 12, "checkpoint.every_epochs": 1, "checkpoint.every_steps": 3, "eval.every_epochs": 1,
}  # fmt: skip
# Seconds: the longest that a process may take from one thing to the next before this study is given up.
_PATIENCE = 300.0
# The activity that a kill interrupts -> the latest moment of the kill, in seconds after the activity begins, and the
# number of times, of which one is drawn, that a process may begin it before. A save continues in the background.
_MOMENTS = {"restoring": (0.5, 1), "taking a step": (0.003, 12), "saving": (0.3, 6), "evaluating": (0.3, 2)}
_FORK = multiprocessing.get_context("fork")


def _begin(work: Callable[[], Any], said: pathlib.Path, telling: Any) -> None:
    """In a process of its own: `work`, which tells whenever it begins another thing."""
    with open(said, "a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    pulse.at = lambda step, doing: telling.send((step, doing.removeprefix("compiling and ")))  # type: ignore[assignment]
    work()


def process(
    work: Callable[[], Any], said: pathlib.Path, *, kill_at: str = "", passed_over: int = 0, seconds: float = 0.0
) -> tuple[int, tuple[int, str]]:
    """Lets a process do `work` and end, or kills it so long after it begins the thing `kill_at`.

    Args:
      work: what it does.
      said: the file that its output goes to.
      kill_at: what pulse calls the thing; nothing, for no kill.
      passed_over: how often it may begin the thing before.
      seconds: from its beginning to the kill.

    Returns:
      its exit status, and the step and the thing that it was at in the end.
    """
    told, telling = _FORK.Pipe(duplex=False)
    forked = _FORK.Process(target=_begin, args=(work, said, telling))
    forked.start()
    telling.close()
    place = (0, "starting")
    try:
        while told.poll(_PATIENCE):
            place = told.recv()
            if place[1] == kill_at and passed_over == 0:
                time.sleep(seconds)
                forked.kill()
            passed_over -= place[1] == kill_at
        raise TimeoutError(f"a process has not come on for {_PATIENCE:g} s")
    except (EOFError, OSError):  # it has ended, perhaps in the middle of a word
        forked.join()
    return forked.exitcode or 0, place


def _evaluate(path: pathlib.Path) -> None:
    """As experiments/evaluate.py does."""
    pulse.at(0, "restoring")
    run, state = restore.newest(path)
    pulse.at(int(state.step), "evaluating")
    experiment.evaluate(run, state)


def _assert_same(one: pathlib.Path, other: pathlib.Path) -> None:
    """Parameters, memory, metrics and log of two complete runs, to the bit."""
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
    """Kills runs, and evaluations of them, while they are at `doing`, until there have been so many kills.

    A run that is killed is started again, and killed again, until it has come to its end; then it is compared with one
    that nobody has killed, and the next one begins.

    Args:
      doing: "restoring", "taking a step", "saving" or "evaluating".
      kills: how many; the run that is killed last goes on to its end.
      seed: of the moments.
      folder: where the runs are.

    Returns:
      what was hit, how many steps were lost by a kill, and how many runs ended as if there had been none.

    Raises:
      RuntimeError: a run that does not go on, or ends otherwise.
    """
    # Of its own, since a kill may leave half an entry behind.
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = steps.from_file("digits", "method=grafit")
    config.update_from_flattened_dict(_SMALL)
    path, said, draw = folder / "killed", folder / "said.txt", random.Random(f"{doing} {seed}")

    def expect(yes: bool, otherwise: str) -> None:
        if not yes:
            raise RuntimeError(f"{otherwise}:\n{said.read_text()[-3000:]}")

    training: Callable[[], Any] = functools.partial(train.train, config, path)
    expect(process(functools.partial(train.train, config, folder / "whole"), said)[0] == 0, "the first run failed")
    hits: collections.Counter[str] = collections.Counter()
    lost: list[int] = []
    half_written = equal = 0
    while hits.total() < kills or path.exists():
        work = training
        moment: dict[str, Any] = {}
        if hits.total() < kills:
            reading = doing in ("restoring", "evaluating") and bool(_steps(path)) and draw.random() < 0.5
            # A run that is killed whenever it restores has nothing to restore: every other time it comes on.
            come_on = doing == "restoring" and not reading and (not _steps(path) or draw.random() < 0.5)
            at_what = "taking a step" if come_on else doing
            work = functools.partial(_evaluate, path) if reading else training
            latest, often = _MOMENTS[at_what]
            passed_over = 0 if reading else draw.randrange(often)
            moment = {"kill_at": at_what, "passed_over": passed_over, "seconds": draw.random() * latest}
        status, (step, at) = process(work, said, **moment)
        if status == -signal.SIGKILL:
            hits[at] += 1
            half_written += any((path / "checkpoints").glob("*tmp*"))
            if work is training and at not in ("starting", "loading data", "restoring", "creating the first state"):
                lost.append(step - max(_steps(path), default=0))
            continue
        expect(status == 0, f"a run, gone on after kill {hits.total()}, failed")
        if work is training:
            status, _ = process(functools.partial(_assert_same, folder / "whole", path), said)
            expect(status == 0, f"a run ended otherwise after kill {hits.total()}")
            damaged = [*(path / "checkpoints").glob("damaged-*")]
            expect(not damaged and "is damaged" not in said.read_text(), f"a kill has left {damaged} unreadable")
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
    """Of the checkpoints of a run that are complete."""
    return [int(p.name) for p in (path / "checkpoints").glob("*") if p.name.isdigit()]


def _entry(doing: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return study(doing, kills=50, seed=0, folder=pathlib.Path(folder))


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    doing.replace(" ", "_"): functools.partial(_entry, doing) for doing in _MOMENTS
}
