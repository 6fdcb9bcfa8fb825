"""What SIGKILL costs: a run killed again and again at random moments, until it has come to its end all the same.

Every entry kills in one of the things that a run, or an evaluation of it, is at. The processes are real and the signals
too; they are forked from this one, which has imported everything and not begun to compute, so that a start takes a
second.
"""

import functools
import json
import os
import pathlib
import random
import select
import shutil
import signal
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from grafit_jax import cli, experiment, train, watchdog, workdir
from grafit_jax import config as config_lib

_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
_SMALL = {
    "model.trunk": "resnet8", "model.stem": "patch2", "model.hidden": 32, "model.dim": 16, "train.epochs": 12,
    "checkpoint.every_epochs": 1, "checkpoint.every_steps": 3, "eval.every_epochs": 1,
}  # fmt: skip
# The longest that a process may take from one thing to the next before this study is given up.
_PATIENCE = 300.0
# Seconds: a kill comes at most so long after the thing it is meant for has begun.
_LATEST = {"reads a batch": 0.02, "takes a step": 0.05, "saves": 0.3, "evaluates": 0.3, "restores": 0.3}


class Process:
    """A forked process at `work`, which tells whenever it begins another thing."""

    def __init__(self, work: Callable[[], Any], said: pathlib.Path):
        self._told, telling = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                with open(said, "a") as out:
                    os.dup2(out.fileno(), 1)
                    os.dup2(out.fileno(), 2)
                watchdog.at = lambda step, doing: os.write(telling, f"{step} {doing}\n".encode())  # type: ignore[assignment]
                work()
                status = 0
            finally:
                os._exit(status)
        os.close(telling)
        self._text = b""

    def next(self) -> tuple[int, str] | None:
        """The next (step, thing) that it begins; None once it has ended."""
        while b"\n" not in self._text:
            if not select.select([self._told], [], [], _PATIENCE)[0]:
                raise TimeoutError(f"a process has not come on for {_PATIENCE:g} s")
            if not (read := os.read(self._told, 4096)):
                return None
            self._text += read
        line, _, self._text = self._text.partition(b"\n")
        step, _, doing = line.decode().partition(" ")
        return int(step), doing

    def kill_after(self, seconds: float) -> list[tuple[int, str]]:
        """What it has begun in so many seconds from now, after which it is killed."""
        select.select([], [], [], seconds)
        os.kill(self.pid, signal.SIGKILL)
        return list(iter(self.next, None))

    def status(self) -> int:
        os.close(self._told)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _evaluate(path: pathlib.Path) -> None:
    """As experiments/evaluate.py does."""
    watchdog.at(0, "restores")
    run, state = experiment.restore_newest(path)
    watchdog.at(int(state.step), "evaluates")
    experiment.evaluate(run, state)


def _assert_same(one: pathlib.Path, other: pathlib.Path) -> None:
    """Parameters, memory, metrics and log of two complete runs, to the bit."""
    found = []
    for path in (one, other):
        run = experiment.load(workdir.read_config(path), path=path)
        like = experiment.initial_state(run, placeholder=True)
        checkpoints = experiment.Checkpoints(path, read_only=True)
        state, memory, _ = checkpoints.restore_newest(like, experiment.initial_memory(run, like, placeholder=True))
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        log = [{k: v for k, v in line.items() if "second" not in k} for line in lines]
        found.append((jax.tree.map(np.asarray, (state, memory)), (path / "metrics.json").read_text(), log))
    jax.tree.map(np.testing.assert_array_equal, found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:], "metrics or log differ"


def study(doing: str, *, kills: int, seed: int, folder: pathlib.Path | None = None) -> dict[str, Any]:
    """Kills runs and evaluations while they are at `doing`, until there have been so many kills, and compares.

    Args:
      doing: "restores", "reads a batch", "takes a step", "saves" or "evaluates".
      kills: how many, at least; the run that is killed last goes on to its end.
      seed: of the moments.
      folder: where the runs are; None for a temporary one.

    Returns:
      what hit where, how many steps were lost by a kill, and how many of the runs that came to their end all the same
      ended as one that nobody has killed.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return study(doing, kills=kills, seed=seed, folder=pathlib.Path(temporary))
    cli.use_compilation_cache()
    config = config_lib.load_file(_ROOT / "configs" / "digits.py", "method=grafit")
    config.update_from_flattened_dict(_SMALL)
    said, draw = folder / "said.txt", random.Random(f"{doing} {seed}")
    whole = Process(functools.partial(train.train, config, folder / "whole"), said)
    while whole.next():
        pass
    _expect(whole.status() == 0, "the run that nobody kills failed", said)

    done, half_written, complete, lost, hits = 0, 0, 0, [], {}
    while done < kills or (folder / "killed").exists():
        path, reading = folder / "killed", doing == "evaluates" and draw.random() < 0.5
        checkpoints = path / "checkpoints"
        if not _steps(checkpoints):
            reading = False
        work = functools.partial(_evaluate if reading else functools.partial(train.train, config), path)
        process = Process(work, said)
        skipped = 0 if doing == "restores" else draw.randrange(12)  # so that a run comes on between two kills
        last = (0, "starts")
        while (place := process.next()) is not None:
            last = place
            if place[1] != doing or done >= kills:
                continue
            if skipped and not reading:
                skipped -= 1
                continue
            later = process.kill_after(draw.random() * _LATEST[doing])
            last = later[-1] if later else place
            break
        status = process.status()
        if status == -signal.SIGKILL:
            done += 1
            hits[last[1]] = hits.get(last[1], 0) + 1
            half_written += any(not p.name.isdigit() for p in checkpoints.glob("*"))
            if not reading:
                lost.append(last[0] - max(_steps(checkpoints), default=0))
            continue
        _expect(status == 0, f"a run, gone on after kill {done}, failed", said)
        if not reading:
            same = Process(functools.partial(_assert_same, folder / "whole", path), said)
            while same.next():
                pass
            _expect(
                same.status() == 0, f"a run, gone on after kill {done}, ended otherwise than one never killed", said
            )
            complete += 1
            shutil.rmtree(path)
    return {
        "work": f"SIGKILL while a run {doing}" + (", or an evaluation of it" if doing == "evaluates" else ""),
        "kills": done,
        "hits": hits,
        "half_written": half_written,
        "steps_lost": float(np.mean(lost)),
        "most_lost": max(lost),
        "runs_equal": complete,
    }


def _steps(checkpoints: pathlib.Path) -> list[int]:
    return [int(p.name) for p in checkpoints.glob("*") if p.name.isdigit()]


def _expect(yes: bool, otherwise: str, said: pathlib.Path) -> None:
    if not yes:
        raise RuntimeError(f"{otherwise}:\n{said.read_text()[-3000:]}")


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    doing.replace(" ", "_"): functools.partial(study, doing, kills=50, seed=0)
    for doing in ("restores", "takes a step", "saves", "evaluates")
}
