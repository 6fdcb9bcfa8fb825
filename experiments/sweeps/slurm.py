"""The points of a sweep as SLURM jobs, by submitit."""

import ast
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from grafit_jax.errors import UserError
from sweeps import runner
from sweeps.expansion import SLURM


@dataclasses.dataclass
class Job:
    """A point as a job. submitit calls it, and calls `checkpoint` on preemption or shortly before the time limit."""

    run: pathlib.Path
    words: Sequence[str]
    attempt: runner.Attempt | None = dataclasses.field(default=None, init=False)

    def __call__(self) -> str:
        begun = runner.begin(self.run, self.words)
        if isinstance(begun, runner.Standing):
            return f"{self.run} is {begun}"
        self.attempt = begun
        ended = begun.finish()
        if ended.state == "failed":
            raise RuntimeError(f"{self.run} failed: {ended.why}")
        return f"{self.run} is {ended.state}"

    def checkpoint(self) -> Any:
        """Stops the run, which saves itself, and returns the job that resumes it. Signals call it during `__call__`."""
        import submitit

        if self.attempt is not None:
            process = self.attempt.process
            process.terminate()
            # Not process.wait(): `__call__` is inside it already.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Job(self.run, self.words))


def parameters(texts: Sequence[str]) -> dict[str, Any]:
    """Parses "key=value" options of submitit; values that are not Python literals are text."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"found {text!r} in --slurm; expected key=value, as timeout_min=240,slurm_partition=gpu.")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def submit(
    commands: runner.Commands,
    directory: pathlib.Path,
    options: dict[str, Any],
    *,
    jobs: int | None,
    cluster: str = "slurm",
) -> list[Any]:
    """Queues the runs of `directory` as one job array, and returns submitit's jobs.

    Args:
      commands: name of a point -> words of its command.
      directory: directory of the workdirs.
      options: options of submitit: timeout_min, gpus_per_node, slurm_partition, …
      jobs: maximum number of jobs at a time; None for submitit's default.
      cluster: one of submitit's executors.

    Raises:
      UserError: submitit is not installed, there is no SLURM, or submitit rejects an option.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "found no submitit for --submit=slurm; install it: pip install -e '.[slurm]', or use --submit=print."
        ) from error
    if jobs is not None:
        options = options | {"slurm_array_parallelism": jobs}
    # The Python that unpickles a job must find the module `sweeps`.
    modules = [str(pathlib.Path(__file__).resolve().parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(modules)))
    try:
        executor = submitit.AutoExecutor(folder=directory / SLURM, cluster=cluster)
        executor.update_parameters(**{"name": "grafit"} | options)
        if not commands:  # an array of no jobs is an error
            return []
        with executor.batch():
            return [executor.submit(Job(directory / name, words)) for name, words in commands.items()]
    except (RuntimeError, ValueError, NameError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"submitit cannot submit to {cluster} ({reason}); correct --slurm, or use --submit=print."
        ) from error
