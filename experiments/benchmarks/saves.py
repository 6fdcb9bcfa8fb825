"""The cost of a checkpoint: how long it blocks the training loop, and how much it delays the following steps.

Files are written in the background, on a CPU by the same cores. Turns of steps with a save at the start and turns
without one alternate. A turn is long enough for the files to be complete before it ends.
"""

import functools
import math
import pathlib
import tempfile
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks import steps, timing
from grafit_jax.runs.checkpoint import Checkpoints

# Goal: maximum fraction of a run's time that saves add.
_GOAL = 0.02


def cost(trunk: str, batch_size: int, *, turn: int, rounds: int) -> dict[str, Any]:
    """Measures a run on 50,000 images: seconds of a step, of the loop blocked by a save, and added by a save in all.

    Args:
      trunk: name of the network.
      batch_size: images per step.
      turn: steps timed together.
      rounds: pairs of turns; the median counts.
    """
    ours = steps.Ours(steps.config(trunk, batch_size), steps.records())
    still, added, longest, plain = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(pathlib.Path(folder))
        for number in range(rounds + 1):
            alone = [timing.seconds(ours.call) for _ in range(turn)]
            save = timing.seconds(functools.partial(checkpoints.save, number + 1, *ours.carry))
            beside = [timing.seconds(ours.call) for _ in range(turn)]
            left = timing.seconds(checkpoints.wait)  # the rest of the save counts too
            if number:  # the first one warms up
                still.append(save)
                added.append(save + sum(beside) + left - sum(alone))
                longest.append(max(beside))
                plain += alone
        size = sum(file.stat().st_size for file in pathlib.Path(folder).rglob("*") if file.is_file())
        checkpoints.close()
    # The background part may vanish in the noise of the steps, so the blocked time is the minimum.
    step_s, adds = median(plain), max(median(added), median(still))
    return {
        "work": f"{trunk}, batch {batch_size}, {len(ours.run.records['train']):,} slots",
        "checkpoint_megabytes": size / 1e6,
        "step_s": step_s,
        "still_s": median(still),
        "adds_s": adds,
        "longest_step": median(longest) / step_s,
        "every_steps": math.ceil(adds / (_GOAL * step_s)),
    }


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    "resnet8": functools.partial(cost, "resnet8", 128, turn=40, rounds=5),
    "resnet18": functools.partial(cost, "resnet18", 64, turn=4, rounds=3),
}
