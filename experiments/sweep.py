"""Runs the `sweep()` of a config file, prints a table, best first, and draws WORKDIR/sweep.png.

python experiments/sweep.py --config=configs/maskcon.py:dataset=cifar100 --workdir=runs/maskcon [--jobs=2] [--dry_run]
python experiments/sweep.py --config=configs/digits.py --workdir=runs/digits --submit=print | parallel -j 8

Arguments after the colon and --config.x.y=value apply to all points; points with another value are left out. A complete
point is read, a stopped one is resumed. Several sweeps may share one WORKDIR, also from different machines: each skips
the points that another sweep is running. A run takes all devices that it sees; on a host with several GPUs, start one
sweep on each, with CUDA_VISIBLE_DEVICES.

Exit status 0: all points are complete; 1: some failed; 75: some are not complete, because of SIGTERM or SIGINT or
because another sweep is running them; 2: a user's mistake, printed in one line.
"""

import pathlib
import shlex
import sys

from absl import flags
from ml_collections import config_flags
from sweeps import expansion, runner, summary

from grafit_jax.commands import cli

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE.py:key=value,… or NAME:key=value,… for a file of configs/; single keys: --config.x.y=value"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the runs' workdirs", required=True)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "check every point and print its state; run nothing")
_JOBS = flags.DEFINE_integer("jobs", 1, "number of runs at a time", lower_bound=1)
_SHARD = flags.DEFINE_string("shard", "0/1", "i/n: only part i of n of the points, i from 0")
_SEEDS = flags.DEFINE_list("seeds", None, "seeds of every point, as 0,1,2 (default: those of sweep())")
_METRIC = flags.DEFINE_string("metric", "map", "metric that orders the table and is plotted")
_SUBMIT = flags.DEFINE_enum(
    "submit",
    "local",
    ["local", "print"],
    "run here, or print a command for each incomplete point",
)
cli.require_numbers("seeds")


def main(argv):
    config_flag = flags.FLAGS["config"]
    file, _, arg = config_flags.get_config_filename(config_flag).partition(":")
    overrides = config_flags.get_override_values(config_flag)
    directory = pathlib.Path(_WORKDIR.value)
    seeds = None if _SEEDS.value is None else [int(seed) for seed in _SEEDS.value]
    sweep = expansion.expand(file, arg, overrides, seeds)
    summary.check_metric(_METRIC.value, sweep)
    expansion.check_directory(sweep, directory)
    points = expansion.shard(sweep.points, _SHARD.value)
    standings = {point.name: runner.standing(directory / point.name) for point in sweep.points}
    if _DRY_RUN.value:
        summary.show(sweep, directory, standings, _METRIC.value)
        print("\n".join(f"{point.name}: {standings[point.name]}" for point in points))
        return
    python = "python" if _SUBMIT.value == "print" else sys.executable
    commands = {point.name: expansion.command(point, directory, python=python, root=_ROOT) for point in points}
    if _SUBMIT.value == "local":
        stopped = runner.run_all(commands, directory, jobs=_JOBS.value)
        sys.exit(summary.conclude(sweep, directory, [*commands], _METRIC.value, stopped=stopped))
    for name, words in commands.items():
        if standings[name].state not in ("complete", "running"):
            print(shlex.join(words))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
