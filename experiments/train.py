"""Trains by a config file, or goes on where a run in the same workdir stopped.

python experiments/train.py --config=configs/cifar100.py:method=grafit,preset=cpu --workdir=runs/grafit [--profile]

On several hosts: the same command on each of them, with --distributed (docs/pods.md). Exit status 0: the run is
complete; 75: it was stopped by Ctrl-C or SIGTERM and has saved itself, and the same command resumes it; 130: a second
Ctrl-C has ended it at once; 69: another host died or hangs, and the same command on all resumes it; 2: a mistake, told
in one line.
"""

import json
import pathlib
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from grafit_jax import config_files, parallel
from grafit_jax.commands import cli, train
from grafit_jax.errors import warn
from grafit_jax.runs import multihost

_CONFIG = config_flags.DEFINE_config_file("config", None, "file.py:key=value,… ; single keys by --config.x.y=value")
_WORKDIR = flags.DEFINE_string("workdir", None, "where the run is, or will be", required=True)
_PROFILE = flags.DEFINE_bool("profile", False, "trace one step into WORKDIR/profile, for XProf or TensorBoard; no run")
_ALLOWED = flags.DEFINE_list(
    "allow_config_change",
    [],
    "config keys that may change on resume. With train.epochs a complete run trains on, too: from that step on the "
    "learning rate and tau follow the schedules of the new length, so the rate rises again.",
)
flags.DEFINE_bool("distributed", False, "one of several hosts, which JAX detects: TPU, SLURM, Kubernetes")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where JAX cannot detect it")
flags.DEFINE_integer("num_processes", None, "how many processes there are, with --coordinator")
flags.DEFINE_integer("process_id", None, "which of them this is, from 0, with --coordinator")
flags.DEFINE_integer("heartbeat_seconds", 60, "how long a silent host is waited for before all others end", 4)
flags.DEFINE_integer(
    "stuck_seconds",
    1800,
    "of several hosts: how long none may move (a step, a save, a batch of an evaluation) before all end; 0: never",
    0,
)
_OF_HOSTS = ("distributed", "coordinator", "num_processes", "process_id", "heartbeat_seconds", "stuck_seconds")


def main(argv):
    hosts: dict[str, Any] = {name: flags.FLAGS[name].value for name in _OF_HOSTS}
    multihost.start(**hosts)
    if _PROFILE.value:
        trace = train.profile(_CONFIG.value, pathlib.Path(_WORKDIR.value))
        print(f"trace: {trace} (pip install xprof tensorboard; tensorboard --logdir={trace})")
        return
    if parallel.is_first() and jax.default_backend() == "cpu" and _CONFIG.value.model.dtype == "bfloat16":
        _warn_of_preset(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0])
    metrics = train.train(_CONFIG.value, pathlib.Path(_WORKDIR.value), allowed=_ALLOWED.value)
    if parallel.is_first():
        print(json.dumps(metrics))


def _warn_of_preset(file):
    """Names the presets of a config file that a CPU can train."""
    presets = getattr(config_files.load_module(pathlib.Path(file)), "PRESETS", ())
    known = " or ".join(f"preset={name}" for name in presets if name.startswith("cpu"))
    remedy = f"use {known} of {file}" if known else f"{file} has no preset for a CPU"
    warn(f"found only a CPU, and a config for accelerators (model.dtype = bfloat16), which may take days: {remedy}.")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
