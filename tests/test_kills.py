"""Two hundred kills: whatever a run is at, it goes on and ends as one that was never killed; no checkpoint is lost."""

import json
import subprocess
import sys

import pytest
from benchmarks import kills

from small import ROOT, shell_environment


@pytest.mark.faults
@pytest.mark.parametrize("entry", kills.ENTRIES)
def test_runs_killed_again_and_again_end_as_one_that_was_not(entry):
    # A process of its own, since the runs are forked from one that has not begun to compute.
    command = [
        sys.executable,
        str(ROOT / "experiments" / "benchmark.py"),
        "--here",
        "--suite=kills",
        f"--entries={entry}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=shell_environment(), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    line = json.loads(done.stdout)
    assert line["kills"] == sum(line["hits"].values()) == 50 and line["runs_equal"] >= 1
    # Every three steps there is a save, of which the newest two may still have been on their way.
    assert line["most_lost"] <= 9
    assert entry != "saves" or line["half_written"] >= 5
