"""Prints the metrics of a workdir's newest checkpoint as one line of JSON, values as fractions.

python experiments/evaluate.py --workdir=runs/grafit
"""

import json
import pathlib

from absl import flags

from grafit_jax import cli, experiment

_WORKDIR = flags.DEFINE_string("workdir", None, "a workdir of experiments/train.py", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS's data directory, where it is not the one of the training")


def main(argv):
    run, state = experiment.restore_newest(pathlib.Path(_WORKDIR.value), data_dir=_DATA_DIR.value)
    print(json.dumps(experiment.evaluate(run, state)))


if __name__ == "__main__":
    cli.run(main)
