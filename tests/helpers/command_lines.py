"""Runs the scripts in experiments/, in this process (`main`, fast) or in a new one (`run`)."""

import contextlib
import dataclasses
import io
import logging
import os
import pathlib
import runpy
import subprocess
import sys

import absl.logging
import pytest
from absl import app, flags

ROOT = pathlib.Path(__file__).parents[2]


def shell_environment():
    """The environment of a user's shell, with one CPU device instead of the eight of the tests."""
    return {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}


def command(script, *arguments):
    return [sys.executable, str(ROOT / "experiments" / f"{script}.py"), *map(str, arguments)]


def run(script, *arguments):
    """Runs experiments/<script>.py in a new process; returns the finished process."""
    return subprocess.run(
        command(script, *arguments), capture_output=True, text=True, env=shell_environment(), cwd=ROOT
    )


@dataclasses.dataclass(frozen=True)
class Done:
    """The result of a command line, as in `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def main(script, *arguments, cwd=ROOT):
    """Runs experiments/<script>.py, or the file `script`, in this process as `__main__`, from the folder `cwd`."""
    out, err = io.StringIO(), io.StringIO()
    path = script if isinstance(script, pathlib.Path) else ROOT / "experiments" / f"{script}.py"
    with _own_flags(), _own_logging(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        patch.chdir(cwd)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                runpy.run_path(str(path), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Done(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _own_flags():
    """Removes the script's absl flags when it ends, since they are global."""
    app.define_help_flags()  # defined only once per process
    known = set(flags.FLAGS)
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - known:
            if not _is_of_a_library(name):
                delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


def _is_of_a_library(name):
    """Returns whether a flag was defined by a module that stays imported, not by a script or its --config."""
    if name.startswith("config."):  # absl seems to define the keys of --config
        return False
    return (flags.FLAGS.find_module_defining_flag(name) or "").startswith(("absl", "tensorflow"))


@contextlib.contextmanager
def _own_logging():
    """Restores the handlers of the root logger, which absl replaces and later tests need for capturing."""
    root, verbosity = logging.getLogger(), absl.logging.get_verbosity()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        absl.logging.set_verbosity(verbosity)


def a_moment(process):
    """Waits 20 ms for a process to end."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.02)
