"""Prints covered lines and branches as a table, with a row for each `coverage` data file given as an argument."""

import json
import pathlib
import sys
import tempfile

import coverage


def totals(file):
    data = coverage.Coverage(data_file=file)
    data.load()
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "coverage.json"
        data.json_report(outfile=str(out))
        return json.loads(out.read_text())["totals"]


print("tier  lines                    branches")
for path in sys.argv[1:]:
    t = totals(path)
    lines = f"{t['covered_lines']} of {t['num_statements']}"
    branches = f"{t['covered_branches']} of {t['num_branches']}"
    print(
        f"{pathlib.Path(path).name:5} {lines:16}{100 * t['covered_lines'] / t['num_statements']:5.1f} %  "
        f"{branches:14}{100 * t['covered_branches'] / t['num_branches']:5.1f} %"
    )
