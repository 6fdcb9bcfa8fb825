"""Runs a suite of benchmarks, each entry next to a peer library where one is installed.

python experiments/benchmark.py --suite=retrieval|train|gpu|data|memory|collectives|kills|saves|start
    [--entries=search_k10,…] [--record] [--data_source=npz:DIR]

Every entry runs in its own process, so that its peak memory is its own, and prints one line of JSON. A table follows on
stderr. Peers are optional (pip install -e '.[benchmark]'); an entry names a peer that is not installed. Times are the
best of several rounds in which ours and the peer take turns. Use a quiet machine.
"""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

from absl import flags
from benchmarks import growth, steps
from study import render

from grafit_jax.commands import cli
from grafit_jax.errors import UserError
from grafit_jax.runs import provenance
from grafit_jax.runs.tables import plain_table

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_SUITES = ("retrieval", "train", "gpu", "data", "memory", "collectives", "kills", "saves", "start")
_SUITE = flags.DEFINE_enum("suite", None, _SUITES, "suite to run", required=True)
_ENTRIES = flags.DEFINE_list("entries", None, "entries to run (default: all of the suite)")
_DATA_SOURCE = flags.DEFINE_string("data_source", "", "images: npz:DIR or tfds:NAME (default: random, CIFAR's shape)")
_RECORD = flags.DEFINE_bool("record", False, "write the lines to experiments/results and render their pages")
_HERE = flags.DEFINE_bool("here", False, "internal: run the entries in this process")


def main(argv):
    entries = importlib.import_module(f"benchmarks.{_SUITE.value}").ENTRIES
    names = _ENTRIES.value or list(entries)
    for name in names:
        if name not in entries:
            raise UserError(f"found entry {name!r} of suite {_SUITE.value}; expected one of {', '.join(entries)}.")
    if _HERE.value:
        steps.source = _DATA_SOURCE.value
        for name in names:
            print(json.dumps({"entry": name, **entries[name](), "environment": _environment()}))
        return
    if _RECORD.value and _ENTRIES.value:
        raise UserError("found --record with --entries; expected a whole suite; remove --entries.")
    lines: list[dict] = []
    failed = []
    for name in names:
        done = _run_apart(name)
        print(done.stdout, end="", flush=True)
        if done.returncode:  # the other entries still run
            failed.append(f"{name} (exit status {done.returncode})")
            continue
        lines.append(json.loads(done.stdout))
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; see their messages above.")
    if _RECORD.value:  # only at the end: an untracked file makes the revision "-dirty"
        recorded = _recorded_name(lines)
        render.record_benchmark(_ROOT, recorded, lines)
        if grown := [line for line in lines if "curve_s" in line]:
            growth.growth_plot(_ROOT / "docs" / f"{recorded}.png", grown)
    print(render.render_benchmark(lines, plain_table), file=sys.stderr)


def _run_apart(name: str) -> subprocess.CompletedProcess:
    """Runs one entry in its own process."""
    here = ["--here", f"--suite={_SUITE.value}", f"--entries={name}", f"--data_source={_DATA_SOURCE.value}"]
    # JAX must not reserve the whole memory of a GPU: the peer needs some of it.
    environ = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return subprocess.run([sys.executable, __file__, *here], stdout=subprocess.PIPE, text=True, env=environ)


def _environment() -> dict[str, Any]:
    """Returns the provenance of an entry, with the vector instructions that times on a CPU depend on."""
    found, info = provenance.describe(), pathlib.Path("/proc/cpuinfo")
    flags_of_cpu = info.read_text().split() if info.exists() else []
    sets = {"avx512f": "AVX-512", "avx2": "AVX2"}
    widest = next((name for flag, name in sets.items() if flag in flags_of_cpu), "")
    return found | {"processor": f"{found['processor']} with {widest}" if widest else found["processor"]}


def _recorded_name(lines: list[dict]) -> str:
    """Returns benchmark_SUITE, followed by the device's name for suite gpu."""
    if _SUITE.value != "gpu":
        return f"benchmark_{_SUITE.value}"
    device = lines[0]["environment"]["device"].partition(" x ")[2]
    return f"benchmark_gpu_{re.sub('[^a-z0-9]+', '_', device.lower())}"


if __name__ == "__main__":
    cli.run(main)
