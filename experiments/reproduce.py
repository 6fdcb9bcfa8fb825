"""Trains what a table lacks, evaluates it and prints the table, with the published numbers beside ours.

python experiments/reproduce.py --list                        # every published row: its value, ours, what it lacks
python experiments/reproduce.py --table=quickstart
python experiments/reproduce.py --table=cifar100 --scale=cpu --data_dir=$HOME/tensorflow_datasets
python experiments/reproduce.py --all --scale=cpu --dry_run   # the whole study: what would be trained, and how long
python experiments/reproduce.py --all --scale=cpu --record --jobs=2

A complete run is read, a stopped run is resumed. A failed run does not stop the others; it is reported at the end with
exit status 1. --record adds every result to experiments/results/TABLE.jsonl as soon as its run ends, and renders
README.md and docs from these files. It does not train recorded runs again; --again does, unless they are complete in
--workdir.

--jobs=N with N > 1 first trains all missing runs, N at a time, each in its own process that writes to train.log in its
workdir. A small network does not keep two cores or a GPU busy. On a GPU, set XLA_PYTHON_CLIENT_MEM_FRACTION so that N
runs share its memory (docs/gpus.md).
"""

import pathlib
import shutil
import sys

from absl import flags
from study import pricing, published, render, reproduction, tables

from grafit_jax.commands import cli
from grafit_jax.commands.main import use_large_pages
from grafit_jax.errors import UserError
from grafit_jax.runs.preemption import EXIT_PREEMPTED
from grafit_jax.runs.tables import plain_table

_LIST = flags.DEFINE_bool("list", False, "list every published row: its value, ours, what it lacks")
_TABLE = flags.DEFINE_string("table", "quickstart", "table, or family of tables")
_SCALE = flags.DEFINE_enum("scale", None, tables.SCALES, "scale of a family or of --all")
_ALL = flags.DEFINE_bool("all", False, "train the tables of all families at a scale")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print what would be trained, and how long it takes")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the runs (default: a folder in runs/)")
_SEEDS = flags.DEFINE_list("seeds", None, "seeds of every row, as 0,1,2 (default: the table's own)")
_ROWS = flags.DEFINE_list("rows", None, "rows to train, in this order (default: all)")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "TFDS's data directory")
_DATA_SOURCE = flags.DEFINE_string(
    "data_source", "", "source of the same images, such as npz:DIR (default: the config's)"
)
_PRETRAINED = flags.DEFINE_string(
    "pretrained", "", "file or name of weights for a table with pretrained trunks (default: its own)"
)
_RECORD = flags.DEFINE_bool("record", False, "add the results to experiments/results, docs and README.md")
_AGAIN = flags.DEFINE_bool("again", False, "with --record: train recorded runs again, in an empty --workdir")
_JOBS = flags.DEFINE_integer("jobs", 1, "number of runs at a time", lower_bound=1)
cli.require_numbers("seeds")


def main(argv):
    root = pathlib.Path(__file__).resolve().parent.parent
    if _LIST.value:
        print(published.render(render.recorded(root), as_text=plain_table))
        return
    if _AGAIN.value and not _RECORD.value:
        raise UserError("found --again without --record; expected both; add --record, or use another --workdir.")
    if _ALL.value and flags.FLAGS["table"].present:
        raise UserError(f"found --all and --table={_TABLE.value}; expected one of them.")
    names = tables.at(_SCALE.value or "cpu") if _ALL.value else [tables.find(_TABLE.value, _SCALE.value)]
    kept = render.recorded(root) if _RECORD.value or _DRY_RUN.value else {}
    known = [result for of_table in kept.values() for result in of_table]
    recorded = known if _RECORD.value and not _AGAIN.value else []
    chosen = {name: _points(name, root) for name in names}
    for name, asked in chosen.items() if _RECORD.value else ():
        render.check_record(root, name, asked)
    if _DRY_RUN.value:
        print(pricing.plan(chosen, recorded, known, jobs=_JOBS.value))
        return
    failed: dict[pathlib.Path, str] = {}
    left: dict[pathlib.Path, str] = {}
    everything = [point for of_table in chosen.values() for point in of_table]
    if _JOBS.value > 1 and reproduction.train_all(everything, recorded, failed, left, root=root, jobs=_JOBS.value):
        print("stopped; the runs that have started are saved; start the same command again to resume", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
    for name, asked in chosen.items():
        found = []
        ours = [point for point in asked if point.directory not in left]
        # Results of its own file first: those of another table may be older.
        of_all = [*kept.get(name, []), *recorded] if recorded else []
        for result in reproduction.all_results(ours, of_all, failed):
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
        sys.exit(1 if failed else EXIT_PREEMPTED)


def _record(root, name, result, failed):
    """Records a result. An error goes to `failed`, so that the remaining tables still run."""
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
    seeds = None if _SEEDS.value is None else [int(seed) for seed in _SEEDS.value]
    return reproduction.points(
        table, _folder(name), root=root, seeds=seeds, only=_ROWS.value,
        data_dir=_DATA_DIR.value, data_source=_DATA_SOURCE.value, pretrained=weights,
    )  # fmt: skip


def _draw(name, root):
    table = tables.TABLES[name]
    drawn = [reproduction.run_directory(_folder(name), row, 0) for row in table.gallery]
    if drawn and all((run / "metrics.json").exists() for run in drawn):
        picture = reproduction.draw(table, _folder(name))
        print(f"picture: {picture}")
        if _RECORD.value:
            shutil.copy(picture, root / "docs" / f"{name}.png")


if __name__ == "__main__":
    use_large_pages()  # it trains in this process
    cli.run(main)
