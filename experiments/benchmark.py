"""Measures a claim of the README or an issue, side by side with a peer where one can be installed.

python experiments/benchmark.py --suite=retrieval [--entries=search_k10,…] [--record]

Every entry runs in a process of its own (so that peak memory is its own) and prints a line of JSON; a table follows on
standard error. Peers are extras: pip install -e '.[benchmark]'. A peer that is not installed is left out and named.
Timings are the best of several rounds in which we and the peer take turns, on a machine that should be quiet.
"""

import importlib
import json
import pathlib
import subprocess
import sys

from absl import flags

from grafit_jax import cli, environment, report, tables, workdir
from grafit_jax.errors import UserError

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_SUITES = ("retrieval", "train", "gpu")
_SUITE = flags.DEFINE_enum("suite", None, _SUITES, "which claims", required=True)
_ENTRIES = flags.DEFINE_list("entries", None, "these alone (default: all of the suite)")
_RECORD = flags.DEFINE_bool("record", False, "keep the lines in experiments/results and render README.md")
_HERE = flags.DEFINE_bool("here", False, "run in this process: what the benchmark starts for every entry")


def main(argv):
    entries = importlib.import_module(f"benchmarks.{_SUITE.value}").ENTRIES
    names = _ENTRIES.value or list(entries)
    for name in names:
        if name not in entries:
            raise UserError(f"suite {_SUITE.value} has no entry {name!r}: want some of {', '.join(entries)}.")
    if _HERE.value:
        for name in names:
            print(json.dumps({"entry": name, **entries[name](), "environment": environment.describe()}))
        return
    lines = []
    for name in names:
        command = [sys.executable, __file__, f"--suite={_SUITE.value}", f"--entries={name}", "--here"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise UserError(f"entry {name} ended with status {done.returncode}: its own message stands above.")
        lines.append(json.loads(done.stdout))
        print(done.stdout, end="", flush=True)
    if _RECORD.value:
        path = tables.results_path(_ROOT, f"benchmark_{_SUITE.value}")
        workdir.write(path, json.dumps(lines, indent=1) + "\n")
        tables.write_readme(_ROOT)
    columns = [key for key in dict.fromkeys(k for line in lines for k in line) if key != "environment"]
    rows = [[_cell(line.get(key)) for key in columns] for line in lines]
    print(report.plain_table(columns, rows), file=sys.stderr)


def _cell(value) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    cli.run(main)
