"""Trains by a config file, or goes on where a run in the same workdir stopped.

python experiments/train.py --config=configs/cifar100.py:method=grafit,preset=cpu --workdir=runs/grafit [--profile]
"""

import json
import pathlib

from absl import flags
from ml_collections import config_flags

from grafit_jax import cli, profiling, train

_CONFIG = config_flags.DEFINE_config_file("config", None, "file.py:key=value,… ; single keys by --config.x.y=value")
_WORKDIR = flags.DEFINE_string("workdir", None, "where the run is, or will be", required=True)
_PROFILE = flags.DEFINE_bool("profile", False, "trace one step into WORKDIR/profile and list what took long; no run")


def main(argv):
    if _PROFILE.value:
        profiling.show_kernels()
        operations, trace = train.profile(_CONFIG.value, pathlib.Path(_WORKDIR.value))
        print(f"{profiling.table(operations)}\n\ntrace, for XProf or TensorBoard: {trace}")
        return
    print(json.dumps(train.train(_CONFIG.value, pathlib.Path(_WORKDIR.value))))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
