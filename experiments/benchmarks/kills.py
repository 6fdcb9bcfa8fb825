"""What SIGKILL costs: a run killed again and again at random moments, until it has come to its end all the same.

Every entry kills in one of the things that a run, or an evaluation of it, is at. The processes are real and the signals
too; they are forked from this one, which has imported everything and not begun to compute, so that a start takes a
second.
"""

import collections
import functools
import itertools
import json
import os
import pathlib
import random
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import sklearn.datasets  # noqa: F401 - so that no process has to import it
import tensorboardX  # noqa: F401

from grafit_jax import config_files, experiment, pulse, restore
from grafit_jax.commands import train
from grafit_jax.runs import workdir
from grafit_jax.runs.checkpoint import Checkpoints

_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
_SMALL = {
    "model.trunk": "resnet8", "model.stem": "patch2", "model.head_hidden_dim": 32, "model.embed_dim": 16,
    "train.epochs": 12, "checkpoint.every_epochs": 1, "checkpoint.every_steps": 3, "eval.every_epochs": 1,
}  # fmt: skip
# The longest that a process may take from one thing to the next before this study is given up.
_PATIENCE = 300.0
# Seconds: a kill comes at most so long after what it is meant for has begun. A save goes on in the background.
_LATEST = {"restoring": 0.5, "taking a step": 0.003, "saving": 0.3, "evaluating": 0.3}
# So many times less one, at most, a process may begin that thing before.
_PASSED_OVER = {"restoring": 1, "taking a step": 12, "saving": 6, "evaluating": 2}


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
                pulse.at = functools.partial(_tell, telling)  # type: ignore[assignment]
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
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

    def rest(self) -> Iterator[tuple[int, str]]:
        """All that it still begins until it ends."""
        while (place := self.next()) is not None:
            yield place

    def kill_at(self, doing: str, *, passed_over: int, seconds: float) -> tuple[int, str]:
        """Kills it so long after it begins that thing, having begun it so often before; or lets it end.

        Returns:
          what it was at in the end.
        """
        place = (0, "starting")
        for place in self.rest():
            if place[1] == doing:
                if not passed_over:
                    select.select([], [], [], seconds)
                    os.kill(self.pid, signal.SIGKILL)
                    return [place, *self.rest()][-1]
                passed_over -= 1
        return place

    def status(self) -> int:
        """Its exit status, once it has ended."""
        os.close(self._told)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _tell(telling: int, step: int, doing: str) -> None:
    os.write(telling, f"{step} {doing.removeprefix('compiling and ')}\n".encode())


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
    jax.tree.map(np.testing.assert_array_equal, found[0][0], found[1][0])
    assert found[0][1] == found[1][1], f"metrics differ: {found[0][1]} and {found[1][1]}"
    for ours, theirs in itertools.zip_longest(found[0][2], found[1][2]):
        assert ours == theirs, f"log lines differ: {ours} and {theirs}"


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
    config = config_files.load_file(_ROOT / "configs" / "digits.py", "method=grafit")
    config.update_from_flattened_dict(_SMALL)
    path, said, draw = folder / "killed", folder / "said.txt", random.Random(f"{doing} {seed}")
    _finish(functools.partial(train.train, config, folder / "whole"), said, "the run that nobody kills")
    hits: collections.Counter[str] = collections.Counter()
    lost: list[int] = []
    half_written = equal = 0
    while hits.total() < kills or path.exists():
        going_on = f"a run, gone on after kill {hits.total()},"
        if hits.total() == kills:
            _finish(functools.partial(train.train, config, path), said, going_on)
        else:
            reading = doing in ("restoring", "evaluating") and bool(_steps(path)) and draw.random() < 0.5
            # A run that is killed whenever it restores has nothing to restore: every other time it comes on.
            come_on = doing == "restoring" and not reading and (not _steps(path) or draw.random() < 0.5)
            at_what = "taking a step" if come_on else doing
            work = functools.partial(_evaluate, path) if reading else functools.partial(train.train, config, path)
            process = Process(work, said)
            passed_over = 0 if reading else draw.randrange(_PASSED_OVER[at_what])
            seconds = draw.random() * _LATEST[at_what]
            step, at = process.kill_at(at_what, passed_over=passed_over, seconds=seconds)
            status = process.status()
            if status == -signal.SIGKILL:
                hits[at] += 1
                half_written += any((path / "checkpoints").glob("*tmp*"))
                if not reading and at not in ("starting", "loading data", "restoring", "creating the first state"):
                    lost.append(step - max(_steps(path), default=0))
                continue
            _expect(status == 0, f"{going_on} failed", said)
            if reading:
                continue
        _finish(functools.partial(_assert_same, folder / "whole", path), said, f"the comparison of {going_on}")
        damaged = [*(path / "checkpoints").glob("damaged-*")]
        _expect(not damaged and "is damaged" not in said.read_text(), f"a kill has left {damaged} unreadable", said)
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


def _finish(work: Callable[[], Any], said: pathlib.Path, what: str) -> None:
    process = Process(work, said)
    collections.deque(process.rest(), maxlen=0)
    _expect(process.status() == 0, f"{what} failed", said)


def _expect(yes: bool, otherwise: str, said: pathlib.Path) -> None:
    if not yes:
        raise RuntimeError(f"{otherwise}:\n{said.read_text()[-3000:]}")


def _entry(doing: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return study(doing, kills=50, seed=0, folder=pathlib.Path(folder))


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    doing.replace(" ", "_"): functools.partial(_entry, doing) for doing in _LATEST
}
