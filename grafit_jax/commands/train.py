"""Trains a run by a config file, or resumes the run in the same workdir.

python experiments/train.py --config=configs/cifar100.py:method=grafit,preset=cpu --workdir=runs/grafit [--profile]

`grafit train` of the installed package is the same command.

On several hosts, start the same command on each of them with --distributed (docs/pods.md).

Exit status 0: the run is complete; 75: Ctrl-C or SIGTERM stopped it and it has saved itself, the same command resumes
it; 130: a second Ctrl-C ended it at once; 69: another host died or hangs, the same command on all hosts resumes it;
2: a user's mistake, printed in one line.
"""

import json
import pathlib
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from grafit_jax import config_files, parallel
from grafit_jax.commands import cli, training
from grafit_jax.errors import warn
from grafit_jax.runs import multihost

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE.py:key=value,… or NAME:key=value,… for a file of configs/; single keys: --config.x.y=value"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run", required=True)
_PROFILE = flags.DEFINE_bool("profile", False, "only trace one step into WORKDIR/profile, for XProf or TensorBoard")
_ALLOWED = flags.DEFINE_list(
    "allow_config_change",
    [],
    "config keys that may change on resume. With train.epochs a complete run continues too; the learning rate and tau "
    "then follow the schedules of the new length, so the learning rate rises again.",
)
flags.DEFINE_bool("distributed", False, "run on several hosts, which JAX detects: TPU, SLURM, Kubernetes")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if JAX cannot detect it")
flags.DEFINE_integer("num_processes", None, "number of processes, with --coordinator")
flags.DEFINE_integer("process_id", None, "index of this process, from 0, with --coordinator")
flags.DEFINE_integer("heartbeat_seconds", 60, "seconds without a heartbeat of a host before all others end", 4)
flags.DEFINE_integer(
    "stuck_seconds",
    1800,
    "on several hosts: seconds without a step, a save or an evaluation batch before all end; 0: never",
    0,
)
# Presets of config files for CPUs start with one of these.
_FOR_CPUS = ("cpu", "laptop", "scratch")
_OF_HOSTS = ("distributed", "coordinator", "num_processes", "process_id", "heartbeat_seconds", "stuck_seconds")


def main(argv):
    hosts: dict[str, Any] = {name: flags.FLAGS[name].value for name in _OF_HOSTS}
    multihost.start(**hosts)
    parallel.warn_of_unseen()
    if _PROFILE.value:
        trace = training.profile(_CONFIG.value, pathlib.Path(_WORKDIR.value))
        print(f"trace: {trace} (pip install xprof tensorboard; tensorboard --logdir={trace})")
        return
    if parallel.is_first() and jax.default_backend() == "cpu" and _CONFIG.value.model.dtype == "bfloat16":
        _warn_of_dtype(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0])
    metrics = training.train(_CONFIG.value, pathlib.Path(_WORKDIR.value), allowed=_ALLOWED.value)
    if parallel.is_first():
        print(json.dumps(metrics))


def _warn_of_dtype(file):
    """Warns that the config is for accelerators, and names the presets for CPUs."""
    presets = getattr(config_files.load_module(pathlib.Path(file)), "PRESETS", ())
    known = " or ".join(f"preset={name}" for name in presets if name.startswith(_FOR_CPUS))
    remedy = f"use {known} of {file}" if known else f"{file} has no preset for CPUs"
    if _CONFIG.value.model.init:  # the network is given
        remedy = "use --config.model.dtype=float32"
    warn(f"found only a CPU for model.dtype = bfloat16, which may take days; expected an accelerator; {remedy}.")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
