"""Eight simulated CPU devices for every test, and little time for compiling; set before jax is imported.

`make test-gpu` leaves JAX the accelerator instead, for the tests that one device is enough for.
"""

import os
import pathlib

import pytest

if "GRAFIT_TEST_ACCELERATOR" not in os.environ:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_NUM_CPU_DEVICES"] = "8"
    # Most of the time goes into compiling: LLVM's first level halves it and leaves a step its speed, at level 0 a step
    # takes ten times as long. Eight devices on a machine that has other work may wait long for each other: XLA would
    # end the process after 40 seconds.
    os.environ["XLA_FLAGS"] = " ".join([
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=1",
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ])  # fmt: skip
# Many tests, and the command lines that they run, compile the same small programs, and so do those of the next run.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path.home() / ".cache" / "grafit_jax" / "tests")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(scope="module", autouse=True)
def no_pages(request):
    """Trainings within the tests' own process leave no report.html, which takes as long as they do."""
    from grafit_jax import train

    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_webpage":
            patch.setattr(train.webpage, "leave", lambda *args: None)
            patch.setattr(train, "_leave_page", lambda *args: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """What a file has compiled is let go of: of all files together a worker would hold 6 GB."""
    yield
    import jax

    jax.clear_caches()


_crashed = set()


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem, report, sched):
    """A test in which XLA has crashed the process is run once more, counted as a rerun; what fails is never run again.

    Seen once in some ten thousand tests, in native code, and not in the same test again.
    """
    if crashitem not in _crashed:
        _crashed.add(crashitem)
        sched.mark_test_pending(crashitem)
        report.outcome = "rerun"
