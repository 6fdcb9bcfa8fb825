"""Repeated kills: a run resumes and ends like one that was never killed, and no checkpoint is lost."""

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
def test_repeatedly_killed_runs_end_like_one_without_kills(doing, long, tmp_path):
    # A separate process: runs are forked from one that has not started to compute.
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
    # A save every three steps; the newest two may have been unfinished.
    assert found["most_lost"] <= 9
    assert not long or doing != "saving" or found["half_written"] >= 5
