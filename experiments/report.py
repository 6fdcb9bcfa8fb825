"""Writes a finished run as one HTML page: tables, curves, nearest images, R@1 by class, confusion, a map, environment.

python experiments/report.py --workdir=runs/grafit [--compare=runs/baseline,runs/baseline_mlp] [--out=report.html]

Everything is in the file, and it needs no network. --compare puts up to two runs on the same test images beside it.
"""

import pathlib

from absl import flags

from grafit_jax.commands import cli
from grafit_jax.report import write

_WORKDIR = flags.DEFINE_string("workdir", None, "a workdir of experiments/train.py", required=True)
_COMPARE = flags.DEFINE_list("compare", [], "others, at most two, tested on the same images")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS's data directory, where it is not the one of the training")
_OUT = flags.DEFINE_string("out", None, f"the page (default: WORKDIR/{write.NAME})")


def main(argv):
    path = pathlib.Path(_WORKDIR.value)
    others = [pathlib.Path(other) for other in _COMPARE.value]
    out = path / write.NAME if _OUT.value is None else pathlib.Path(_OUT.value)
    write.make(path, others, out, data_dir=_DATA_DIR.value)
    print(f"page: {out}")


if __name__ == "__main__":
    cli.run(main)
