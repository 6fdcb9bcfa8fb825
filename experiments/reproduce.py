"""Trains what a table lacks, evaluates it, and prints it, the paper's numbers beside ours.

python experiments/reproduce.py --list                        # every published row: paper's, ours, what it lacks
python experiments/reproduce.py --table=quickstart
python experiments/reproduce.py --table=cifar100 --scale=cpu --data_dir=$HOME/tensorflow_datasets
python experiments/reproduce.py --all --scale=cpu --dry_run   # the whole study: what is to be trained, and how long
python experiments/reproduce.py --all --scale=cpu --record --jobs=2

A run that is complete is read, one that was stopped goes on, one that fails leaves the others alone: it is told of at
the end, exit status 1. With --record every result is added at once to experiments/results/TABLE.jsonl, what is recorded
already is not trained again (--again: it is, unless it is complete in --workdir), and README.md and docs are rendered
from these files.

With --budget_minutes=N no run is started that would not end in N minutes, by the times of runs of its config on the
same kind of device that are recorded, or complete in --workdir. What ends is kept, and at the end stand the runs that
were not started: exit status 75 if the same command again can go on with one of them.

With --jobs=N above 1 all that is missing is trained first, N runs at a time, each by a process of its own that writes
to train.log in its directory: on a CPU, of which a small network does not keep two cores busy. A run takes all devices
that it sees, so on an accelerator it is one at a time.
"""

import pathlib
import shutil
import sys

import jax
from absl import flags
from study import pricing, published, render, reproduction, tables

from grafit_jax.commands import cli
from grafit_jax.errors import UserError
from grafit_jax.report.tables import plain_table
from grafit_jax.runs.preemption import EXIT_PREEMPTED

_LIST = flags.DEFINE_bool("list", False, "every row of the paper: its value, ours, what it lacks")
_TABLE = flags.DEFINE_string("table", "quickstart", "which table, or which family of tables")
_SCALE = flags.DEFINE_enum("scale", None, tables.SCALES, "of a family, or of --all")
_ALL = flags.DEFINE_bool("all", False, "the tables of all families at a scale")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "say what would be trained, and how long it takes")
_WORKDIR = flags.DEFINE_string("workdir", None, "where its runs are (default: a folder of runs)")
_SEEDS = flags.DEFINE_list("seeds", None, "seeds of every row, as 0,1,2 (default: the table's own)")
_ROWS = flags.DEFINE_list("rows", None, "these rows alone, in this order, by the names of their directories")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "TFDS's data directory")
_DATA_SOURCE = flags.DEFINE_string("data_source", "", "the same images elsewhere, as npz:DIR (default: the config's)")
_PRETRAINED = flags.DEFINE_string("pretrained", "", "a file of weights, for a table whose trunks start from one")
_RECORD = flags.DEFINE_bool("record", False, "add the results to experiments/results, docs and README.md")
_AGAIN = flags.DEFINE_bool("again", False, "with --record: train again what is recorded, in an empty --workdir")
_JOBS = flags.DEFINE_integer("jobs", 1, "how many runs at a time", lower_bound=1)
_BUDGET = flags.DEFINE_float("budget_minutes", None, "start no run that would not end in this time", lower_bound=0)
cli.want_numbers("seeds")


def main(argv):
    root = pathlib.Path(__file__).resolve().parent.parent
    if _LIST.value:
        print(published.render(render.recorded(root), as_text=plain_table))
        return
    if _AGAIN.value and not _RECORD.value:
        raise UserError("found --again without --record: want both, or take another --workdir.")
    if _ALL.value and flags.FLAGS["table"].present:
        raise UserError(f"found --all and --table={_TABLE.value}: want one of them.")
    if _BUDGET.value is not None and _JOBS.value > 1:
        raise UserError(f"found --budget_minutes with --jobs={_JOBS.value}: use --jobs=1 with a budget.")
    names = tables.at(_SCALE.value or "cpu") if _ALL.value else [tables.find(_TABLE.value, _SCALE.value)]
    kept = render.recorded(root) if _RECORD.value or _DRY_RUN.value or _BUDGET.value is not None else {}
    known = [result for of_table in kept.values() for result in of_table]
    recorded = reproduction.index(known) if _RECORD.value and not _AGAIN.value else {}
    chosen = {name: _points(name, root) for name in names}
    for name, wanted in chosen.items() if _RECORD.value else ():
        render.check_record(root, name, wanted)
    if _DRY_RUN.value:
        print(pricing.plan(chosen, recorded, known, jobs=_JOBS.value))
        return
    failed: dict[pathlib.Path, str] = {}
    left: dict[pathlib.Path, str] = {}
    everything = [point for wanted in chosen.values() for point in wanted]
    budget = None
    if _BUDGET.value is not None:
        timed = [*known, *reproduction.complete(everything)]
        budget = pricing.Budget(60 * _BUDGET.value, timed, on_cpu=jax.default_backend() == "cpu")
    if _JOBS.value > 1 and reproduction.train_all(everything, recorded, failed, left, root=root, jobs=_JOBS.value):
        print("stopped, and what has begun is saved: start the same command again to go on", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
    for name, wanted in chosen.items():
        found = []
        ours = [point for point in wanted if point.directory not in left]
        for result in reproduction.all_results(ours, recorded, failed, left, budget):
            found.append(result)
            if _RECORD.value:
                _record(root, name, result, failed)
        if found:
            print(f"\n{render.render(tables.TABLES[name], found)}\n")
            print(published.render({name: found}, [name], as_text=plain_table))
            _draw(name, root)
    for run, reason in failed.items():
        print(f"failed: {run}: {reason}", file=sys.stderr)
    for run, reason in left.items():
        print(f"left: {run}: {reason}", file=sys.stderr)
    if failed or left:
        again = not failed and any(reason.endswith(reproduction.AGAIN) for reason in left.values())
        sys.exit(EXIT_PREEMPTED if again else 1)


def _record(root, name, result, failed):
    """Adds a result to what is recorded; where that cannot be, the tables that are still to come do not suffer."""
    try:
        render.record(root, name, result)
    except (UserError, OSError) as error:
        failed[reproduction.run_directory(_folder(name), result["row"], result["seed"])] = f"not recorded: {error}"


def _folder(name):
    folder = tables.TABLES[name].folder or name
    if _WORKDIR.value and not _ALL.value:
        return pathlib.Path(_WORKDIR.value)
    return pathlib.Path(_WORKDIR.value or "runs") / folder


def _points(name, root):
    table = tables.TABLES[name]
    weights = _PRETRAINED.value if table.pretrained or not _ALL.value else ""
    source = reproduction.Source(_DATA_DIR.value, _DATA_SOURCE.value, weights)
    seeds = None if _SEEDS.value is None else [int(seed) for seed in _SEEDS.value]
    return reproduction.points(table, _folder(name), root=root, seeds=seeds, only=_ROWS.value, source=source)


def _draw(name, root):
    table = tables.TABLES[name]
    drawn = [reproduction.run_directory(_folder(name), row, 0) for row in table.gallery]
    if drawn and all((run / "metrics.json").exists() for run in drawn):
        picture = reproduction.draw(table, _folder(name))
        print(f"picture: {picture}")
        if _RECORD.value:
            shutil.copy(picture, root / "docs" / f"{name}.png")


if __name__ == "__main__":
    cli.run(main)
