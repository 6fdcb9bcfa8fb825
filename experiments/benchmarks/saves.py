"""What a checkpoint costs a run: how long its loop stands still, and how much later its steps are done.

The files are written in the background, by the same cores on a CPU. Steps with a save at their beginning and steps
without one take turns; a turn is long enough for the files to be complete before it ends.
"""

import functools
import math
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import jax

from benchmarks import steps, timing
from grafit_jax import experiment, restore, train_step
from grafit_jax.runs.checkpoint import Checkpoints

# What all saves of a run may add to it, in the issue.
_GOAL = 0.02


def cost(trunk: str, batch_size: int, *, turn: int, rounds: int) -> dict[str, Any]:
    """Of a run of `trunk` on 50,000 images: seconds of a step, of a save in the loop, and what a save adds in all.

    Args:
      trunk: of the network.
      batch_size: images a step.
      turn: steps that are timed together.
      rounds: pairs of turns, of which the median counts.
    """
    run = experiment.load(steps.config(trunk, batch_size), steps.records())
    feed = experiment.make_feed(run)
    call, inputs = train_step.pmap_steps(run, feed), next(iter(feed.epoch(0)))
    state, memory = restore.initial(run)
    saved, still, added, longest, plain = 0, [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(pathlib.Path(folder))
        for number in range(rounds + 1):
            seconds: dict[bool, list[float]] = {}
            for saving in (False, True):
                seconds[saving] = []
                if saving:
                    saved += 1
                    seconds[saving] += [timing.seconds(functools.partial(checkpoints.save, saved, state, memory))]
                for _ in range(turn):

                    def step() -> None:
                        nonlocal state, memory
                        state, memory, _ = jax.block_until_ready(call(state, memory, inputs))

                    seconds[saving].append(timing.seconds(step))
                if saving:  # what is left of it counts too
                    seconds[saving].append(timing.seconds(checkpoints.wait))
            if number:  # the first one warms up
                still.append(seconds[True][0])
                added.append(sum(seconds[True]) - sum(seconds[False]))
                longest.append(max(seconds[True][1:-1]))
                plain += seconds[False]
        size = sum(file.stat().st_size for file in pathlib.Path(folder).rglob("*") if file.is_file())
        checkpoints.close()
    # What is written in the background may be lost in the noise of the steps; what the loop waits for is not.
    step_s, adds = statistics.median(plain), max(statistics.median(added), statistics.median(still))
    return {
        "work": f"{trunk}, batch {batch_size}, {len(run.records['train']):,} slots",
        "checkpoint_megabytes": size / 1e6,
        "step_s": step_s,
        "still_s": statistics.median(still),
        "adds_s": adds,
        "longest_step": statistics.median(longest) / step_s,
        "every_steps": math.ceil(adds / (_GOAL * step_s)),
    }


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    "resnet8": functools.partial(cost, "resnet8", 128, turn=40, rounds=5),
    "resnet18": functools.partial(cost, "resnet18", 64, turn=4, rounds=3),
}
