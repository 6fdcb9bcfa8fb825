"""Sweeps as SLURM jobs: submitit's arguments, and the runs of jobs, with submitit's own executors."""

import json
import pickle
import signal
import sys

import pytest
from sweeps import runner, slurm
from sweeps.runner import Standing

from grafit_jax.errors import UserError
from grafit_jax.runs import locks, workdir
from helpers.sweep_files import stub, write_metrics

submitit = pytest.importorskip("submitit")


def test_a_job_runs_in_its_own_process_and_returns_the_state_of_its_run(tmp_path):
    directory = tmp_path / "runs"
    commands = {"good": stub(write_metrics(map=0.5))(directory / "good")}
    (job,) = slurm.submit(commands, directory, {"timeout_min": 5}, jobs=2, cluster="local")
    assert job.result() == f"{directory / 'good'} is complete"
    assert runner.standing(directory / "good") == Standing("complete")
    with pytest.raises(RuntimeError, match=r"bad failed: no luck"):  # SLURM sees the failure
        slurm.Job(directory / "bad", stub("sys.exit('no luck')")(directory / "bad"))()
    assert runner.standing(directory / "bad") == Standing("failed", "no luck")


def test_a_job_skips_a_complete_or_running_run(tmp_path):
    job = pickle.loads(pickle.dumps(slurm.Job(tmp_path / "a", stub("sys.exit('never')")(tmp_path / "a"))))
    with workdir.lock(tmp_path / "a"):
        assert job().endswith("is running")
    (tmp_path / "a" / "metrics.json").write_text("{}")
    assert job().endswith("is complete")
    assert not (tmp_path / "a" / workdir.LOG).exists()
    assert not locks.is_held(tmp_path / "a" / workdir.LOCK)  # the job has released the lock


def test_before_its_time_limit_a_job_saves_its_run_and_is_queued_again(tmp_path):
    # The run stops its job by the signal that submitit forwards from SLURM.
    code = (
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\nos.kill(os.getppid(), signal.SIGUSR2)\n"
        "signal.sigwait({signal.SIGTERM})\nprint('saved')\nsys.exit(75)"
    )
    job = slurm.Job(tmp_path, stub(code)(tmp_path))
    queued = []

    def handle(number, frame):
        queued.append(job.checkpoint())
        assert (tmp_path / workdir.LOG).read_text() == "saved\n"  # it ends before the job is queued again

    before = signal.signal(signal.SIGUSR2, handle)
    try:
        assert job().endswith("is stopped")
    finally:
        signal.signal(signal.SIGUSR2, before)
    (again,) = queued
    assert again.function == slurm.Job(job.run, job.words)
    pickle.dumps(again)


def test_options_of_slurm_and_their_errors(tmp_path, monkeypatch):
    options = slurm.parameters(["timeout_min=240", "slurm_partition=gpu", "slurm_time=4:00:00", "mem_gb=1.5"])
    assert options == {"timeout_min": 240, "slurm_partition": "gpu", "slurm_time": "4:00:00", "mem_gb": 1.5}
    for wrong in ("timeout_min", "=3", "a b=3"):
        with pytest.raises(UserError, match=r"in --slurm; expected key=value, as timeout_min=240,slurm_partition=gpu"):
            slurm.parameters([wrong])

    def submit(**options):
        slurm.submit({}, tmp_path, options, jobs=None)

    monkeypatch.setenv("PATH", str(tmp_path))  # without srun
    with pytest.raises(
        UserError, match=r"submitit cannot submit to slurm \(.*srun.*\); correct --slurm, or use --submit=pr"
    ):
        submit()
    (tmp_path / "srun").touch(mode=0o755)
    with pytest.raises(UserError, match=r"submitit cannot submit to slurm \(.*gpus_a_node"):
        submit(gpus_a_node=1)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(
        UserError, match=r"found no submitit for --submit=slurm; install it: pip install -e '.\[slurm\]'"
    ):
        submit()


def test_sbatch_receives_an_array_of_jobs(tmp_path, monkeypatch):
    # A fake sbatch that keeps its script and prints a job id.
    for name, line in (("srun", ""), ("sbatch", 'cp "$1" "$(dirname "$0")/handed.sh"; echo Submitted batch job 17')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    commands = {name: ["true", name] for name in ("a=1", "a=2", "a=3")}
    options = {"timeout_min": 30, "slurm_partition": "gpu"}
    jobs = slurm.submit(commands, tmp_path / "runs", options, jobs=2)
    assert [job.job_id for job in jobs] == ["17_0", "17_1", "17_2"]
    handed = (tmp_path / "handed.sh").read_text()
    for line in ("--array=0-2%2", "--time=30", "--partition=gpu", "--job-name=grafit"):
        assert f"#SBATCH {line}\n" in handed
    assert [job.submission().function.words[1] for job in jobs] == list(commands)
    assert slurm.submit({}, tmp_path / "runs", options, jobs=2) == []
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2; exit 1\n")
    with pytest.raises(
        UserError, match=r"cannot submit to slurm \(.*invalid partition specified: gpu.*; correct --slurm"
    ):
        slurm.submit(commands, tmp_path / "runs", options, jobs=2)
    assert json.dumps([str(job.submission().function.run) for job in jobs]).count(str(tmp_path / "runs")) == 3
