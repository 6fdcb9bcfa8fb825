"""Full or read-only disks, vanishing data and clock jumps: one-line errors, and no loss of results."""

import os
import shutil
import subprocess
import time

import pytest

from grafit_jax.errors import UserError
from grafit_jax.runs import workdir
from helpers import image_files
from helpers.runs import before_calls, log_of, small_config


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk):
    (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - 20_000))


def protect(disk):
    """Makes newly opened files read-only, by a second mount, because the first one has open files."""
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", disk], check=True)


def unprotect(disk):
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize(
    ("spoil", "mend"),
    [
        pytest.param(fill, lambda disk: (disk / "other").unlink(), id="full"),
        pytest.param(protect, unprotect, id="read-only"),
    ],
)
def test_an_unwritable_disk_gives_an_error_and_costs_no_checkpoint(
    small_disk, tmp_path, monkeypatch, spoil, mend, trains
):
    config = small_config(**{"checkpoint.every_epochs": 1, "train.epochs": 3})
    expected = trains(config, tmp_path / "whole")
    run = small_disk / "run"

    def spoil_when_saved():
        while not (run / "checkpoints" / "14").exists():  # saved in the background
            os.sched_yield()
        spoil(small_disk)

    before_calls(monkeypatch, {20: spoil_when_saved})  # of 14 steps an epoch
    with pytest.raises(UserError, match=r"cannot write (a checkpoint|to the workdir) .*free disk space"):
        trains(config, run)
    assert {p.name for p in (run / "checkpoints").iterdir() if p.name.isdigit()} == {"14"}
    mend(small_disk)
    assert trains(config, run) == expected
    assert log_of(run) == log_of(tmp_path / "whole")
    assert all(path.name.isdigit() for path in (run / "checkpoints").iterdir())  # no partial checkpoint


def test_an_evaluation_that_cannot_be_logged_keeps_the_checkpoint(tmp_path, monkeypatch, trains):
    append = workdir.append_log

    def full(path, line):
        if line["step"] == 42 and any(name.startswith(workdir.EVAL) for name in line):
            raise OSError("disk quota exceeded")
        append(path, line)

    monkeypatch.setattr(workdir, "append_log", full)
    with pytest.raises(OSError, match="quota"):  # 14 steps per epoch, evaluation of epoch 3
        trains(small_config(**{"eval.every_epochs": 1, "checkpoint.every_epochs": 10, "train.epochs": 9}), tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["42"]


@pytest.mark.parametrize("broken", ["fatal", "skip"])
def test_vanished_data_stop_a_run_that_resumes_when_they_are_restored(tmp_path, monkeypatch, broken, trains):
    data = tmp_path / "data"
    image_files.write_tree(data, {"train/x": 24, "train/y": 24, "test/x": 6, "test/y": 6}, height=8, width=8)
    config = small_config(**{
        "data.source": f"folder:{data}", "data.stream": True, "data.image_size": 8, "data.on_unreadable": broken,
        "train.batch_size": 8, "eval.batch_size": 32, "eval.recall_at": (1,), "checkpoint.every_epochs": 1,
        "views.mean": (0.4,) * 3, "views.std": (0.3,) * 3,
    })  # fmt: skip
    expected = trains(config, tmp_path / "whole")
    before_calls(monkeypatch, {8: lambda: data.rename(tmp_path / "elsewhere")})  # 6 steps per epoch
    with pytest.raises(UserError, match=r"found .*unreadable.*\.png.*(check the disk|remove it)"):
        trains(config, tmp_path / "run")
    (tmp_path / "elsewhere").rename(data)
    assert trains(config, tmp_path / "run") == expected
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")


def test_clock_jumps_change_nothing(tmp_path, monkeypatch, trains):
    config = small_config("baseline", **{"checkpoint.every_epochs": 1, "train.epochs": 3, "eval.every_epochs": 1})
    expected = trains(config, tmp_path / "steady")
    now, jump = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + jump[0])
    before_calls(monkeypatch, {10: lambda: jump.append(jump.pop() - 1e6), 25: lambda: jump.append(jump.pop() + 3e6)})
    assert trains(config, tmp_path / "jumpy") == expected
    assert log_of(tmp_path / "jumpy") == log_of(tmp_path / "steady")
    checkpoints = [{p.name for p in (tmp_path / run / "checkpoints").iterdir()} for run in ("jumpy", "steady")]
    assert checkpoints[0] == checkpoints[1]
