"""Tiers, budgets and devices of the tests.

A test belongs to the slow tier (`make test-all`) if it uses a fixture in SLOW or is marked `slow`, unless it is marked
`quick`; all others belong to the fast tier (`make test`). `make test-faults` runs the tests that use a fixture in
FAULTS, with --long.

The library sees one device, and eight with the fixture `eight_devices`. Settings must precede the import of JAX.
`make test-gpu` uses the accelerator instead.
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
MOST_MAPS = 30_000

if "GRAFIT_TEST_ACCELERATOR" not in os.environ:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_NUM_CPU_DEVICES"] = "8"
    # Compilation dominates: LLVM's level 1 halves its time at full step speed; at level 0 steps are ten times slower.
    # On a busy machine eight devices may wait long for each other, and XLA would abort the process after 40 seconds.
    os.environ["XLA_FLAGS"] = " ".join([
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=1",
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ])  # fmt: skip
# Tests, and the command lines that they run, share many compiled programs, also between runs.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path.home() / ".cache" / "grafit_jax" / "tests")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="use the long budgets of fault, kill and fuzz tests")


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
    # Triton, which PyTorch's CUDA builds import late, crashes if it is imported after TensorFlow.
    asked = any("torch" in item.fixturenames for item in session.items)
    if asked and importlib.util.find_spec("torch") and importlib.util.find_spec("triton"):
        import triton  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def one_device():
    from helpers.devices import use_devices

    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 1)
        yield


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Frees compiled programs in time: each has 10 to 30 memory maps, and at Linux's limit of 65,530 XLA aborts."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()


@pytest.fixture
def eight_devices(monkeypatch):
    """Shows the library eight devices."""
    from helpers.devices import use_devices

    use_devices(monkeypatch, 8)


@pytest.fixture(scope="session", autouse=True)
def no_pages():
    """Disables report.html, which takes as long as a training here. Yields the replaced functions."""
    from grafit_jax.commands import training
    from grafit_jax.report import write

    places = (write, "leave"), (training, "leave_page")
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
    """Enables report.html, as for a user."""
    with _pages(no_pages):
        yield


@pytest.fixture(scope="session")
def cli():
    """`cli("evaluate", "--workdir=...")` runs a command line in this process."""
    from helpers.command_lines import main

    return main


@pytest.fixture(scope="session")
def processes():
    """`processes("train", "--workdir=...")` runs a command line in a process of its own."""
    from helpers.command_lines import run

    return run


def _need_oracle(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"found no {name}; use pip install -e '.[test,parity]'")


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
    """Returns TFDS's data directory; skips the test unless the data set is prepared there."""
    folder = pathlib.Path(os.environ.get("TFDS_DATA_DIR", pathlib.Path.home() / "tensorflow_datasets"))
    if not (folder / name).is_dir():
        pytest.skip(f"found no {name} in {folder}; use `tfds build {name} --data_dir={folder}`")
    return str(folder)


@pytest.fixture(scope="session")
def cifar100():
    return _prepared("cifar100")


@pytest.fixture(scope="session")
def omniglot():
    return _prepared("omniglot")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub, which is not asked."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture(scope="session")
def trains():
    """`trains(config, path)` trains a run, for tests that cannot use `trained_once`."""
    from grafit_jax.commands import training

    return training.train


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory, no_pages):
    """The workdir of a small Grafit run with its page, trained once and shared by all workers; read-only."""
    from grafit_jax.commands import training
    from helpers.runs import small_config

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    path = shared / "train_run"
    with filelock.FileLock(shared / "train_run.lock"), _pages(no_pages):
        if not (path / "metrics.json").is_file():
            training.train(small_config(**{"checkpoint.every_epochs": 1, "eval.every_epochs": 1}), path)
    return path


@pytest.fixture(scope="module")
def digits(trained_once):
    """The model of that run."""
    import grafit_jax

    return grafit_jax.load(trained_once)


@pytest.fixture
def train_run(trained_once, tmp_path):
    """A copy of that workdir, with checkpoints of steps 14 and 28, which a test may change."""
    return shutil.copytree(trained_once, tmp_path / "train_run")


@pytest.fixture
def long(request):
    """Whether a fault test has the long budget of `make test-faults`."""
    return request.config.getoption("--long")


@pytest.fixture
def times(request):
    """The number of examples of a fuzz test, relative to a short run."""
    return 20 if request.config.getoption("--long") else 1


_crashed = set()


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem, report, sched):
    """Reruns a test once if XLA has crashed the process, and counts it as a rerun; failed tests are not rerun.

    XLA's native code crashes about once in ten thousand tests, and not in the same test again.
    """
    if crashitem not in _crashed:
        _crashed.add(crashitem)
        sched.mark_test_pending(crashitem)
        report.outcome = "rerun"
