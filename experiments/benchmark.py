"""Measures a claim of the README or an issue, side by side with a peer where one can be installed.

python experiments/benchmark.py --suite=retrieval|train|gpu|data|memory|collectives|kills|saves
    [--entries=search_k10,…] [--record] [--data_source=npz:DIR]

Every entry runs in a process of its own (so that peak memory is its own) and prints a line of JSON; a table follows on
standard error. Peers are extras: pip install -e '.[benchmark]'. A peer that is not installed is left out and named.
Timings are the best of several rounds in which we and the peer take turns, on a machine that should be quiet.
"""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

from absl import flags
from benchmarks import growth, steps
from study import render

from grafit_jax.commands import cli
from grafit_jax.errors import UserError
from grafit_jax.report.tables import plain_table
from grafit_jax.runs import provenance

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_SUITES = ("retrieval", "train", "gpu", "data", "memory", "collectives", "kills", "saves")
_SUITE = flags.DEFINE_enum("suite", None, _SUITES, "which claims", required=True)
_ENTRIES = flags.DEFINE_list("entries", None, "these alone (default: all of the suite)")
_RECORD = flags.DEFINE_bool(
    "record", False, "keep the lines in experiments/results and render the pages that show them"
)
_HERE = flags.DEFINE_bool("here", False, "run in this process: what the benchmark starts for every entry")


def main(argv):
    entries = importlib.import_module(f"benchmarks.{_SUITE.value}").ENTRIES
    names = _ENTRIES.value or list(entries)
    for name in names:
        if name not in entries:
            raise UserError(f"suite {_SUITE.value} has no entry {name!r}: want some of {', '.join(entries)}.")
    if _HERE.value:
        for name in names:
            print(json.dumps({"entry": name, **entries[name](), "environment": provenance.describe()}))
        return
    if _RECORD.value and _ENTRIES.value:
        raise UserError("--record keeps a whole suite, measured in one go: leave out --entries.")
    lines: list[dict] = []
    failed = []
    for name in names:
        done = _run_apart(name)
        print(done.stdout, end="", flush=True)
        if done.returncode:  # the others are measured all the same
            failed.append(f"{name} (exit status {done.returncode})")
            continue
        lines.append(json.loads(done.stdout))
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; their own messages stand above.")
    if _RECORD.value:  # at the end alone, since a file that git does not know makes the revision "-dirty"
        recorded = _recorded_name(lines)
        render.record_benchmark(_ROOT, recorded, lines)
        if grown := [line for line in lines if "curve_s" in line]:
            growth.growth_plot(_ROOT / "docs" / f"{recorded}.png", grown)
    print(render.render_benchmark(lines, plain_table), file=sys.stderr)


def _run_apart(name: str) -> subprocess.CompletedProcess:
    """One entry, in a process of its own."""
    here = ["--here", f"--suite={_SUITE.value}", f"--entries={name}", f"--data_source={steps.SOURCE.value}"]
    # A GPU's memory is not to be taken whole, since the peer needs its part of it.
    environ = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return subprocess.run([sys.executable, __file__, *here], stdout=subprocess.PIPE, text=True, env=environ)


def _recorded_name(lines: list[dict]) -> str:
    """benchmark_SUITE, and for a GPU its name behind it, since there are many."""
    if _SUITE.value != "gpu":
        return f"benchmark_{_SUITE.value}"
    device = lines[0]["environment"]["device"].partition(" x ")[2]
    return f"benchmark_gpu_{re.sub('[^a-z0-9]+', '_', device.lower())}"


if __name__ == "__main__":
    cli.run(main)
