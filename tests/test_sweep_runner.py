"""Running sweeps with real processes, locks and signals: which points run, which are skipped, and how they end."""

import errno
import fcntl
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import pytest
from sweeps import expansion, runner
from sweeps.runner import Standing

from grafit_jax.errors import UserError
from grafit_jax.runs import locks, workdir
from helpers.command_lines import ROOT, a_moment, shell_environment
from helpers.runs import finish
from helpers.sweep_files import stub, write_file, write_metrics

DONE = stub(write_metrics(map=0.5))
# Writes a line for every run.
ONCE = "with (run / 'trace').open('a') as f: f.write('run\\n')\n"


def commands(path, **stubs):
    return {name: words(path / name) for name, words in stubs.items()}


def hold(path):
    """Locks a file as another process would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def states(path, names):
    return {name: runner.standing(path / name).state for name in names}


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (None, Standing("not started")),
        ("", Standing("stopped")),
        ("step 1\rstep 2", Standing("stopped")),
        ("saved\n\nexit status 75\n", Standing("stopped")),
        ("\nexit status -15\n", Standing("stopped")),
        ("a\nerror: no data \n\nexit status 2\n", Standing("failed", "error: no data")),
        ("a\n\nexit status -9\n", Standing("failed", "killed by signal 9")),
        ("exit status 1\n", Standing("failed", "exit status 1")),
        ("error: x\n\nexit status 2\nbegun again", Standing("stopped")),
        ("x" * 10_000 + "\n\xff\nexit status 1\n", Standing("failed", "\xff")),
        ("y" * 10_000 + "\nexit status 1\n", Standing("failed", "y" * 300)),
    ],
)
def test_the_state_of_a_point_is_read_from_its_workdir(tmp_path, log, expected):
    if log is not None:
        (tmp_path / workdir.LOG).write_text(log, encoding="utf-8")
    assert runner.standing(tmp_path) == expected
    if log is not None:
        with hold(tmp_path / workdir.LOCK):
            assert runner.standing(tmp_path) == Standing("running")
        assert runner.standing(tmp_path) == expected
    (tmp_path / "metrics.json").write_text("{}")
    assert runner.standing(tmp_path) == Standing("complete")


def test_failed_points_do_not_stop_others_and_complete_ones_are_not_run_again(tmp_path):
    points = commands(
        tmp_path,
        bad=stub(ONCE + "print('so far so good', flush=True); sys.exit('no luck')"),
        good=stub(ONCE + write_metrics(map=0.5)),
        killed=stub("os.kill(os.getpid(), signal.SIGKILL)"),
        lazy=stub("pass"),
    )
    for again in (1, 2):
        assert runner.run_all(points, tmp_path, jobs=2) is False
        assert {name: str(runner.standing(tmp_path / name)) for name in points} == {
            "bad": "failed (no luck)",
            "good": "complete",
            "killed": "failed (killed by signal 9)",
            "lazy": "failed (exit status 0)",  # without a result
        }
        assert (tmp_path / "bad" / "trace").read_text() == "run\n" * again  # a new sweep tries again
        assert (tmp_path / "good" / "trace").read_text() == "run\n"
    log = (tmp_path / "bad" / workdir.LOG).read_text()
    assert log == "so far so good\nno luck\n\nexit status 1\n" * 2


def test_points_that_another_sweep_runs_are_skipped_and_checked_again(tmp_path, monkeypatch):
    points = commands(tmp_path, theirs=DONE, ours=DONE)
    with hold(tmp_path / "theirs" / workdir.LOCK):
        assert runner.run_all(points, tmp_path, jobs=1) is False
        assert states(tmp_path, points) == {"theirs": "running", "ours": "complete"}

    # The other sweep releases its points, failed or stopped, while this one runs its own.
    left, failing = (hold(tmp_path / name / workdir.LOCK) for name in ("left", "failing"))
    begin = runner.begin

    def begun(run, *rest):
        if run.name == "slow":
            for name, lock, log in (("left", left, "begun"), ("failing", failing, "no luck\n\nexit status 1\n")):
                (tmp_path / name / workdir.LOG).write_text(log)
                lock.close()
        return begin(run, *rest)

    points = commands(tmp_path, left=stub(ONCE + write_metrics()), failing=stub(ONCE), slow=DONE)
    monkeypatch.setattr(runner, "begin", begun)
    runner.run_all(points, tmp_path, jobs=1)
    assert states(tmp_path, points) == {"left": "complete", "failing": "failed", "slow": "complete"}
    assert not (tmp_path / "failing" / "trace").exists()  # not tried again


def test_a_briefly_held_lock_is_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    held = hold(path)
    assert locks.take(path) is None and locks.is_held(path)
    monkeypatch.setattr(locks, "MOMENT", 30.0)
    threading.Timer(0.1, held.close).start()
    assert not locks.is_held(path)
    held = hold(path)
    threading.Timer(0.1, held.close).start()
    with workdir.lock(tmp_path):
        monkeypatch.undo()
        assert locks.is_held(path)
    lock = locks.take(path)
    lock.release()
    assert not locks.is_held(path) and not locks.is_held(tmp_path / "missing")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, capsys, number):
    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = locks.take(tmp_path / "lock")
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path / 'lock'}: found a file system without locks (")
    lock.release()
    assert not locks.is_held(tmp_path / "lock")
    assert runner.begin(tmp_path / "run", DONE(tmp_path / "run")).finish() == Standing("complete")
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path / 'run'}: found a file system without locks (")


def test_checking_a_lock_does_not_block_a_sweep(tmp_path, monkeypatch):
    looks = [Standing("running")]  # as if another process held the lock to check it
    begin = runner.begin
    monkeypatch.setattr(runner, "begin", lambda *of_run: looks.pop() if looks else begin(*of_run))
    assert runner.run_all(commands(tmp_path, a=DONE), tmp_path, jobs=1) is False
    assert states(tmp_path, ["a"]) == {"a": "complete"} and not looks


def test_a_run_inherits_the_lock_of_its_sweep(tmp_path):
    # Takes the lock as train.py does; every other run of the same workdir is refused.
    code = f"""
sys.path.insert(0, {str(ROOT)!r})
from grafit_jax.runs import locks
lock = locks.take(run / 'lock')
print(lock is not None, locks.is_held(run / 'lock'), locks.take(run / 'other') is not None, flush=True)
if lock is not None:
    lock.release()  # releases only its own copy
signal.sigwait({{signal.SIGTERM}})
"""
    masked = "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
    words = [word for word in stub(masked + code)(tmp_path) if word != "-IS"]
    attempt = runner.begin(tmp_path, words)
    try:
        while attempt.process.poll() is None and not (tmp_path / workdir.LOG).read_text():
            a_moment(attempt.process)
        assert (tmp_path / workdir.LOG).read_text() == "True True True\n"
        attempt.lock.close()  # as if the sweep had ended
        assert runner.begin(tmp_path, DONE(tmp_path)) == Standing("running") == runner.standing(tmp_path)
        with pytest.raises(UserError, match=r"found it in use by another run"), workdir.lock(tmp_path):
            pass
    finally:
        attempt.process.terminate()
        attempt.finish()
    with workdir.lock(tmp_path):  # the lock is free again
        assert locks.is_held(tmp_path / workdir.LOCK)


def test_a_full_disk_is_reported_in_one_line(tmp_path, capsys):
    attempt = runner.begin(tmp_path, stub("sys.exit(1)")(tmp_path))
    attempt.log = pathlib.Path("/dev/full").open("ab")  # noqa: SIM115
    assert attempt.finish() == Standing("stopped")  # like a killed run: it is tried again
    assert re.fullmatch(
        r"warning: .*: the exit status 1 cannot be written .*No space left.*\n", capsys.readouterr().err
    )
    # Running points continue, no more are started, and the sweep fails.
    (tmp_path / "b").touch()
    points = commands(tmp_path, a=DONE, b=DONE, c=DONE)
    with pytest.raises(UserError, match=r"/b cannot be created \(.*\); .* then start the sweep again\."):
        runner.run_all(points, tmp_path, jobs=2)
    assert states(tmp_path, ["a", "c"]) == {"a": "complete", "c": "not started"}
    assert re.search(
        r"warning: .*/b cannot be created .* No more runs are started\.\na: complete\n", capsys.readouterr().err
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_is_passed_to_the_runs_and_no_more_are_started(tmp_path, number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    # Both save themselves on a signal. The first stops the sweep once the second is ready.
    os.mkfifo(tmp_path / "ready")
    masked = "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})\n"
    own_group = "os.getpgid(0) == os.getpid()"  # Ctrl-C reaches only the sweep's group
    saves = f"print({own_group}, signal.sigwait({{signal.SIGTERM, signal.SIGINT}}).name)\nsys.exit(75)"
    asks = f"(run.parent / 'ready').read_bytes()\nos.kill(os.getppid(), {int(number)})\n"
    ready = "(run.parent / 'ready').write_bytes(b'')\n"
    points = commands(tmp_path, first=stub(masked + asks + saves), second=stub(masked + ready + saves), third=DONE)
    assert runner.run_all(points, tmp_path, jobs=2) is True
    assert states(tmp_path, points) == {"first": "stopped", "second": "stopped", "third": "not started"}
    for name in ("first", "second"):
        assert (tmp_path / name / workdir.LOG).read_text() == "True SIGTERM\n\nexit status 75\n"
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert runner.run_all(commands(tmp_path, first=DONE), tmp_path, jobs=1) is False
    assert states(tmp_path, points)["first"] == "complete"


# Two sweeps at once, a killed sweep, and the command, with real processes.

_SWEEPER = """
import json, pathlib, sys
from sweeps import runner
print("ready", flush=True)
commands, directory = json.loads(sys.stdin.readline())
runner.run_all(commands, pathlib.Path(directory), jobs=2)
"""


_ENVIRONMENT = shell_environment() | {"PYTHONPATH": str(ROOT / "experiments")}


# Writes the process id of its sweep.
BY = "with (run / 'trace').open('a') as f: f.write(f'{os.getppid()}\\n')\n"


@pytest.mark.slow
def test_two_sweeps_of_one_directory_never_run_a_point_twice(tmp_path):
    names = [f"point{number}" for number in range(12)]
    points = commands(tmp_path, **dict.fromkeys(names, stub(BY + write_metrics(map=0.5))))
    points |= commands(tmp_path, bad=stub(BY + "sys.exit('no luck')"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    sweepers = [
        subprocess.Popen([sys.executable, "-c", _SWEEPER], text=True, env=_ENVIRONMENT, cwd=ROOT, **pipes)
        for _ in range(2)
    ]
    for sweeper in sweepers:
        assert sweeper.stdout.readline() == "ready\n"
    for sweeper in sweepers:  # at the same time
        sweeper.stdin.write(json.dumps([points, str(tmp_path)]) + "\n")
        sweeper.stdin.flush()
    said = [sweeper.communicate()[1] for sweeper in sweepers]
    assert [sweeper.returncode for sweeper in sweepers] == [0, 0], said
    ran = [(tmp_path / name / "trace").read_text().splitlines() for name in points]
    assert all(len(numbers) == 1 for numbers in ran)
    assert {int(number) for (number,) in ran} == {sweeper.pid for sweeper in sweepers}, said
    assert states(tmp_path, points) == dict.fromkeys(names, "complete") | {"bad": "failed"}


@pytest.mark.slow
def test_a_run_whose_sweep_was_killed_is_not_started_again(tmp_path):
    # The run works until the pipe is written.
    os.mkfifo(tmp_path / "end")
    points = commands(tmp_path, a=stub(ONCE + "(run.parent / 'end').read_bytes()\n" + write_metrics(map=0.5)))
    sweeper = subprocess.Popen(
        [sys.executable, "-c", _SWEEPER], text=True, env=_ENVIRONMENT, cwd=ROOT, stdin=subprocess.PIPE
    )
    sweeper.stdin.write(json.dumps([points, str(tmp_path)]) + "\n")
    sweeper.stdin.flush()
    while sweeper.poll() is None and not (tmp_path / "a" / "trace").is_file():
        a_moment(sweeper)
    sweeper.kill()
    assert sweeper.wait() == -signal.SIGKILL
    assert runner.run_all(points, tmp_path, jobs=1) is False
    assert states(tmp_path, points) == {"a": "running"}
    (tmp_path / "end").write_bytes(b"")
    with (tmp_path / "a" / workdir.LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert states(tmp_path, points) == {"a": "complete"}
    assert (tmp_path / "a" / "trace").read_text() == "run\n"


@pytest.mark.slow
def test_the_command_keeps_complete_points_and_lists_failed_ones(tmp_path, cli):
    # The process of the failed point ends before it trains.
    file, directory = write_file(tmp_path, [{"seed": 0}, {"source": "npz:/nowhere"}]), tmp_path / "runs"
    sweep = expansion.expand(file, "", {})
    complete, failed = (directory / point.name for point in sweep.points)
    finish(complete, sweep.points[0].config, {"map": 0.5})
    done = cli("sweep", f"--config={file}", f"--workdir={directory}")
    assert done.returncode == 1 and "| `baseline` | 50.0 |" in done.stdout, done
    assert done.stdout.splitlines()[-2:] == [
        f"{failed.name}: failed (error: npz:/nowhere: found no such folder; expected one with *train.npz and "
        "*test.npz.)",
        f"plot: {directory / 'sweep.png'}",
    ]
    assert (failed / workdir.LOG).read_text().endswith("\n\nexit status 2\n")  # of a process, for a user's mistake
    assert not (complete / workdir.LOG).exists()
