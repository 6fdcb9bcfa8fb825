"""Kills by the dozen: a run resumes and ends like one that was never killed, and no checkpoint is lost."""

import json
import os
import subprocess
import sys

import pytest

from helpers.command_lines import ROOT, shell_environment

STUDY = """
import json, pathlib, sys
from benchmarks import kills
doing, number, folder = sys.argv[1:]
print(json.dumps(kills.study(doing, kills=int(number), seed=0, folder=pathlib.Path(folder))))
"""


@pytest.mark.parametrize("doing", ["restoring", "taking a step", "saving", "evaluating"])
def test_runs_killed_again_and_again_end_as_one_that_was_not(doing, long, tmp_path):
    # A process of its own, since the runs are forked from one that has not begun to compute.
    number = 50 if long else 6
    done = subprocess.run(
        [sys.executable, "-c", STUDY, doing, str(number), str(tmp_path)],
        capture_output=True,
        text=True,
        env=shell_environment() | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "experiments")])},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found["kills"] == sum(found["hits"].values()) == number and found["runs_equal"] >= 1
    assert found["hits"][doing] >= 1
    # Every three steps there is a save, of which the newest two may still have been on their way.
    assert found["most_lost"] <= 9
    assert not long or doing != "saving" or found["half_written"] >= 5
