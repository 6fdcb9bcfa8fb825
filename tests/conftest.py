"""Tiers, budgets and devices of the tests.

A test belongs to the slow tier (`make test-all`) if it asks for a fixture in SLOW or is marked `slow`; a test marked
`quick` stays in the fast tier (`make test`) all the same. A test that asks for a fixture in FAULTS is one of those that
`make test-faults` runs with --long.

The library sees one device; the fixture `eight_devices` shows it eight. All settings are made before JAX is imported.
`make test-gpu` leaves JAX the accelerator instead.
"""

import contextlib
import importlib
import importlib.util
import os
import pathlib
import shutil

import filelock
import pytest

SLOW = {
    "processes", "eight_devices", "trains", "browser", "cifar100", "omniglot", "torch", "torchvision", "timm", "long",
}  # fmt: skip
FAULTS = {"times", "long"}

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


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="long budgets for fault, kill and fuzz tests")


def pytest_collection_modifyitems(items):
    for item in items:
        asked = set(item.fixturenames)
        if FAULTS & asked:
            item.add_marker("faults")
        if "eight_devices" in asked:
            item.add_marker("eight_devices")
        if SLOW & asked and not item.get_closest_marker("quick"):
            item.add_marker("slow")


def pytest_collection_finish(session):
    # Triton, which PyTorch's CUDA builds import late, is a segmentation fault after TensorFlow: so it comes before.
    asked = any("torch" in item.fixturenames for item in session.items)
    if asked and importlib.util.find_spec("torch") and importlib.util.find_spec("triton"):
        import triton  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def one_device():
    from helpers.devices import use_devices

    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 1)
        yield


@pytest.fixture
def eight_devices(monkeypatch):
    """The library sees eight devices."""
    from helpers.devices import use_devices

    use_devices(monkeypatch, 8)


@pytest.fixture(scope="session", autouse=True)
def no_pages():
    """Trainings leave no report.html, which takes as long as they do. Yields the functions that are replaced."""
    from grafit_jax.commands import train
    from grafit_jax.report import write

    places = (write, "leave"), (train, "leave_page")
    own = [(module, name, getattr(module, name)) for module, name in places]
    with pytest.MonkeyPatch.context() as patch:
        for module, name in places:
            patch.setattr(module, name, lambda *args: None)
        yield own


@contextlib.contextmanager
def _pages(own):
    with pytest.MonkeyPatch.context() as patch:
        for place in own:
            patch.setattr(*place)
        yield


@pytest.fixture
def pages_left(no_pages):
    """Trainings leave their page, as they do for a user."""
    with _pages(no_pages):
        yield


@pytest.fixture(scope="session")
def cli():
    """`cli("evaluate", "--workdir=...")` runs a command line within this process."""
    from helpers.command_lines import main

    return main


@pytest.fixture(scope="session")
def processes():
    """`processes("train", "--workdir=...")` runs a command line in a process of its own, where that is the point."""
    from helpers.command_lines import run

    return run


def _need_oracle(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is an oracle: pip install -e '.[test,parity]'")


@pytest.fixture(scope="session")
def torch():
    _need_oracle("torch")
    return importlib.import_module("torch")


@pytest.fixture(scope="session")
def torchvision(torch):
    _need_oracle("torchvision")
    from benchmarks import torch_peer

    return torch_peer.torchvision()


@pytest.fixture(scope="session")
def timm(torchvision):
    _need_oracle("timm")
    return importlib.import_module("timm")


def _prepared(name):
    """TFDS's data directory, if the real data set is prepared there."""
    folder = pathlib.Path(os.environ.get("TFDS_DATA_DIR", pathlib.Path.home() / "tensorflow_datasets"))
    if not (folder / name).is_dir():
        pytest.skip(f"no {name} in {folder}: run `tfds build {name} --data_dir={folder}`")
    return str(folder)


@pytest.fixture(scope="session")
def cifar100():
    return _prepared("cifar100")


@pytest.fixture(scope="session")
def omniglot():
    return _prepared("omniglot")


@pytest.fixture(scope="session")
def trains():
    """`trains(config, path)`, the training of a run, for tests for which `trained_once` will not do."""
    from grafit_jax.commands import train

    return train.train


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory, no_pages):
    """The workdir of a small Grafit run with its page, trained once whatever the number of workers; not to change."""
    from grafit_jax.commands import train
    from helpers.runs import small_config

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    path = shared / "train_run"
    with filelock.FileLock(shared / "train_run.lock"), _pages(no_pages):
        if not (path / "metrics.json").is_file():
            train.train(small_config(**{"checkpoint.every_epochs": 1, "eval.every_epochs": 1}), path)
    return path


@pytest.fixture
def train_run(trained_once, tmp_path):
    """A copy of that workdir, with checkpoints of steps 14 and 28, for a test to restore, read or damage."""
    return shutil.copytree(trained_once, tmp_path / "train_run")


@pytest.fixture
def long(request):
    """Whether a fault test has the long budget, that of `make test-faults`."""
    return request.config.getoption("--long")


@pytest.fixture
def times(request):
    """How many times the examples of a short run a fuzz test draws."""
    return 20 if request.config.getoption("--long") else 1


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
