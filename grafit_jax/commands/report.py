"""Writes the report of a run as one HTML page: tables, curves, nearest images, R@1 by class, confusion, map.

python experiments/report.py --workdir=runs/grafit [--compare=runs/baseline,runs/baseline_mlp] [--out=report.html]

`grafit report` of the installed package is the same command.

The page is self-contained and needs no network. --compare adds up to two runs that were tested on the same images,
which they may resize differently.
"""

import pathlib

from absl import flags

from grafit_jax.commands import cli
from grafit_jax.report import write

_WORKDIR = flags.DEFINE_string("workdir", None, "workdir of a finished run", required=True)
_COMPARE = flags.DEFINE_list("compare", [], "workdirs of at most two other runs, tested on the same images")
_DATA_DIR = flags.DEFINE_string("data_dir", None, cli.DATA_DIR)
_OUT = flags.DEFINE_string("out", None, f"output file (default: WORKDIR/{write.NAME})")


def main(argv):
    path = pathlib.Path(_WORKDIR.value)
    others = [pathlib.Path(other) for other in _COMPARE.value]
    out = path / write.NAME if _OUT.value is None else pathlib.Path(_OUT.value)
    write.make(path, others, out, data_dir=_DATA_DIR.value)
    print(f"page: {out}")


if __name__ == "__main__":
    cli.run(main)
