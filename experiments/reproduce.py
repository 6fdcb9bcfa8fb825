"""Trains what a table lacks, evaluates it, and prints the table.

python experiments/reproduce.py --table=quickstart
python experiments/reproduce.py --table=cifar100_cpu --data_dir=$HOME/tensorflow_datasets

A run that is complete is read, one that was stopped goes on. With --record the results are kept as
experiments/results/TABLE.json, the picture as docs/TABLE.png, and the table in README.md is rendered from them.
"""

import json
import pathlib
import shutil

from absl import flags

from grafit_jax import cli, pages, reproduction, tables
from grafit_jax import workdir as workdir_lib
from grafit_jax.errors import UserError

_TABLE = flags.DEFINE_enum("table", "quickstart", sorted(tables.TABLES), "which table")
_WORKDIR = flags.DEFINE_string("workdir", None, "where its runs are (default: its folder of runs)")
_SEEDS = flags.DEFINE_list("seeds", None, "seeds of every row, as 0,1,2 (default: the table's own)")
_ROWS = flags.DEFINE_list("rows", None, "these rows alone, by the names of their directories (default: all)")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "TFDS's data directory")
_DATA_SOURCE = flags.DEFINE_string("data_source", "", "the same images elsewhere, as npz:DIR (default: the config's)")
_PRETRAINED = flags.DEFINE_string("pretrained", "", "a file of weights, for a table whose trunks start from one")
_RECORD = flags.DEFINE_bool("record", False, "keep the results in experiments/results, docs and README.md")
cli.want_numbers("seeds")


def main(argv):
    root = pathlib.Path(__file__).resolve().parent.parent
    table = tables.TABLES[_TABLE.value]
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{table.folder or _TABLE.value}")
    if _RECORD.value and _ROWS.value:
        raise UserError("found --record with --rows: want a whole table to be recorded.")
    seeds = None if _SEEDS.value is None else [int(s) for s in _SEEDS.value]
    results = reproduction.run(
        table,
        workdir,
        root=root,
        seeds=seeds,
        only=_ROWS.value,
        data_dir=_DATA_DIR.value,
        data_source=_DATA_SOURCE.value,
        pretrained=_PRETRAINED.value,
    )
    print(f"\n{pages.render(table, results)}\n")
    drawn = [reproduction.run_directory(workdir, name, 0) for name in table.gallery]
    if drawn and all((run / "metrics.json").exists() for run in drawn):
        picture = reproduction.draw(table, workdir)
        print(f"picture: {picture}")
        if _RECORD.value:
            shutil.copy(picture, root / "docs" / f"{_TABLE.value}.png")
    if _RECORD.value:
        path = pages.results_path(root, _TABLE.value)
        workdir_lib.write(path, json.dumps(results, indent=1) + "\n")
        pages.write_pages(root)


if __name__ == "__main__":
    cli.run(main)
