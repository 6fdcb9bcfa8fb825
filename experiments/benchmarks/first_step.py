"""The first step of the quickstart's Grafit run and nothing else; the start-up benchmark times the process."""

import pathlib
import sys

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent))

from configs import digits
from grafit_jax import experiment, restore, train_step
from grafit_jax.commands import cli

if __name__ == "__main__":
    cli.use_compilation_cache()
    run = experiment.load(digits.get_config())
    state, memory = restore.initial(run)
    feed = experiment.make_feed(run)
    jax.block_until_ready(train_step.pmap_steps(run, feed)(state, memory, next(iter(feed.epoch(0)))))
