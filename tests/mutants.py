"""Mutation tests: applies small faults ("mutants") to the library, each of which the fast tests must detect.

    python tests/mutants.py [--only=NAME,NAME] [--jobs=2]

Copies the checkout to a temporary folder, once per job. There it applies the faults of tests/helpers/mutants/ one at
a time, runs the tests listed with a fault until the first failure, and reverts the fault. It prints a line for each
fault: killed, with the test that failed, or SURVIVED. All listed tests must first pass without a fault.

Exit status: 0 if all faults are killed, else 1. A pytest that neither passes nor fails
(no tests, a crash) is an error, never a kill.
"""

import argparse
import concurrent.futures
import contextlib
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from helpers.mutants import MUTANTS, Mutant

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Timeout in seconds for the tests of one fault, and for all listed tests.
LIMIT, LIMIT_OF_ALL = 300, 3600


class Checkouts:
    """Copies of the checkout, one for each job, in which pytest runs."""

    def __init__(self, folder: pathlib.Path, jobs: int):
        self._running: set[subprocess.Popen] = set()
        self._free: queue.SimpleQueue[pathlib.Path] = queue.SimpleQueue()
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        self.paths = [folder / str(job) for job in range(jobs)]
        for path in self.paths:
            for file in filter(None, listed.stdout.split("\0")):
                if (ROOT / file).is_file():  # git also lists uncommitted deletions
                    (path / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / file, path / file)
            self._free.put(path)

    def python(self, path: pathlib.Path, *arguments: str, limit: float) -> tuple[int | None, str]:
        """Runs Python on the modules of a copy; returns (exit status, output), with status None after a timeout."""
        # Before the editable install, also for the command lines that tests start.
        modules = os.pathsep.join(str(path / name) for name in ("", "experiments", "tests"))
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=path,
                env=os.environ | {"PYTHONPATH": modules},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
            try:
                status: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
                kill(process)
            self._running.discard(process)
            said.seek(0)
            return status, said.read()

    def pytest(self, path: pathlib.Path, tests: list[str], *, jobs: int = 0, limit: float) -> tuple[int | None, str]:
        options = ["-x", "-q", f"-n{jobs}", "-p", "no:cacheprovider", f"--basetemp={path}_tmp"]
        return self.python(path, "-m", "pytest", *options, *tests, limit=limit)

    def run(self, mutant: Mutant) -> tuple[str, str]:
        """Tests a mutant; returns ("killed", "SURVIVED" or "ERROR", details)."""
        path = self._free.get()
        source = path / mutant.file
        text, began = source.read_text(), time.perf_counter()
        try:
            source.write_text(text.replace(mutant.old, mutant.new))
            status, said = self.pytest(path, list(mutant.tests), limit=LIMIT)
        finally:
            source.write_text(text)
            self._free.put(path)
        seconds = f"{time.perf_counter() - began:.0f} s"
        if status is None:
            return "killed", f"by timeout ({LIMIT} s)"
        if status == 0:
            return "SURVIVED", f"{' '.join(mutant.tests)} ({seconds})"
        failed = re.search(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", said, re.MULTILINE)
        if status != 1 or failed is None:
            return "ERROR", f"pytest ended with status {status} ({last_line(said)})"
        return "killed", f"{failed[1]} ({seconds})"

    def stop(self) -> None:
        for process in list(self._running):
            kill(process)


def kill(process: subprocess.Popen) -> None:
    """Kills a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(said: str) -> str:
    return next(reversed(said.strip().splitlines()), "no output")


def check(checkouts: Checkouts, mutants: list[Mutant]) -> None:
    """Exits with one line unless every fault can be applied and the tests pass without faults."""
    path = checkouts.paths[0]
    for m in mutants:
        count = (path / m.file).read_text().count(m.old)
        if count != 1:
            sys.exit(f"{m.name!r}: found the old text {count} times in {m.file}; expected once; update the list")
    _, imported = checkouts.python(path, "-c", "import grafit_jax; print(grafit_jax.__file__)", limit=LIMIT)
    if last_line(imported) != str(path / "grafit_jax" / "__init__.py"):
        sys.exit(f"found grafit_jax imported from {last_line(imported)}; expected the copy in {path}")
    print(f"testing {last_line(imported)}", flush=True)
    tests = sorted({test for m in mutants for test in m.tests})
    began, jobs = time.perf_counter(), len(checkouts.paths)
    status, said = checkouts.pytest(path, tests, jobs=jobs if jobs > 1 else 0, limit=LIMIT_OF_ALL)
    if status != 0:
        failed = re.findall(r"^(?:(?:FAILED|ERROR) (?=tests/)|ERROR: )(.+)", said, re.MULTILINE) or [last_line(said)]
        sys.exit(f"the tests do not pass without a fault: pytest ended with status {status} ({failed[0]})")
    print(f"{len(tests)} tests pass without a fault ({time.perf_counter() - began:.0f} s)", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="names of faults, separated by commas")
    parser.add_argument("--jobs", type=int, default=2, help="faults tested at a time")
    options = parser.parse_args()
    mutants = [*MUTANTS]
    if options.only:
        unknown = set(options.only.split(",")) - {m.name for m in mutants}
        if unknown:
            sys.exit(f"--only: found unknown faults {', '.join(sorted(unknown))}; use names in tests/helpers/mutants/")
        mutants = [m for m in mutants if m.name in options.only.split(",")]
    began, outcomes = time.perf_counter(), dict[str, str]()
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        checkouts = Checkouts(pathlib.Path(folder), options.jobs)
        check(checkouts, mutants)
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            futures = {pool.submit(checkouts.run, m): m.name for m in mutants}
            try:
                for future in concurrent.futures.as_completed(futures):
                    name = futures[future]
                    outcomes[name], said = future.result()
                    print(f"{outcomes[name]:8}  {name}: {said}", flush=True)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                checkouts.stop()
    killed = [*outcomes.values()].count("killed")
    print(f"{killed} of {len(outcomes)} faults killed in {time.perf_counter() - began:.0f} s")
    return 0 if killed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
